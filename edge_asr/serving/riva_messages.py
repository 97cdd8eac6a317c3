"""The messages of Riva's speech recognition that this server speaks, made from a table of their fields.

Names, numbers and types of the fields are those on the wire; a test compares each of them with the
descriptors of `nvidia-riva-client`. What is not in the table is ignored. Maps stand as what they are on the
wire, repeated entries. The messages live in a pool of their own, beside which the client's can be loaded.
What this file does not do: listen, recognize (riva_face.py).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "nvidia.riva.asr"
#: A message and its fields: number, type (* if repeated), name.
_TABLE = """
RequestId: 1 string value;
Entry: 1 string key, 2 string value;
SpeechContext: 1 string* phrases, 4 float boost;
EndpointingConfig: 3 int32 stop_history;
SpeakerDiarizationConfig: 1 bool enable_speaker_diarization;
RecognitionConfig: 1 int32 encoding, 2 int32 sample_rate_hertz, 3 string language_code,
    6 SpeechContext* speech_contexts, 7 int32 audio_channel_count, 8 bool enable_word_time_offsets,
    12 bool enable_separate_recognition_per_channel, 13 string model, 14 bool verbatim_transcripts,
    19 SpeakerDiarizationConfig diarization_config, 24 Entry* custom_configuration,
    25 EndpointingConfig endpointing_config;
StreamingRecognitionConfig: 1 RecognitionConfig config, 2 bool interim_results;
RecognizeRequest: 1 RecognitionConfig config, 2 bytes audio, 100 RequestId id;
StreamingRecognizeRequest: 1 StreamingRecognitionConfig streaming_config, 2 bytes audio_content,
    100 RequestId id;
WordInfo: 1 int32 start_time, 2 int32 end_time, 3 string word, 4 float confidence, 6 string language_code;
SpeechRecognitionAlternative: 1 string transcript, 2 float confidence, 3 WordInfo* words,
    4 string* language_code;
SpeechRecognitionResult: 1 SpeechRecognitionAlternative* alternatives, 2 int32 channel_tag,
    3 float audio_processed;
RecognizeResponse: 1 SpeechRecognitionResult* results, 100 RequestId id;
StreamingRecognitionResult: 1 SpeechRecognitionAlternative* alternatives, 2 bool is_final,
    5 int32 channel_tag, 6 float audio_processed;
StreamingRecognizeResponse: 1 StreamingRecognitionResult* results, 100 RequestId id;
RivaSpeechRecognitionConfigRequest: 1 string model_name;
Config: 1 string model_name, 2 Entry* parameters;
RivaSpeechRecognitionConfigResponse: 1 Config* model_config
"""
_TYPES = {
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "float": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}

ENCODINGS = {"LINEAR_PCM": 1, "FLAC": 2, "MULAW": 3, "OGGOPUS": 4, "ALAW": 20}
"""What the samples are; 0 leaves it to their first bytes."""


def _make_messages() -> Any:
    """Return the classes of the table."""
    file = descriptor_pb2.FileDescriptorProto(name="edge_asr/riva.proto", package=PACKAGE, syntax="proto3")
    for row in _TABLE.split(";"):
        name, _, fields = row.partition(":")
        message = file.message_type.add(name=name.strip())
        for text in fields.split(","):
            number, kind, field_name = text.split()
            field = message.field.add(name=field_name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if (plain := kind.rstrip("*")) in _TYPES:
                field.type = _TYPES[plain]
            else:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = pool.FindFileByName(file.name).message_types_by_name
    return SimpleNamespace(**{name: message_factory.GetMessageClass(made[name]) for name in made})


MESSAGES: Any = _make_messages()
"""The classes, such as `MESSAGES.RecognizeRequest`."""
