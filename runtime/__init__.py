"""What runs on the device: features, backends, decoding, recognizer, streaming, microphone.

Names are imported when first used, so that `import edge_asr.runtime` costs nothing and works
without onnxruntime and without PortAudio. Nothing here imports PyTorch or onnx.
"""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.feature_config import FeatureConfig as FeatureConfig
    from edge_asr.runtime.alignment.result import AlignedWord as AlignedWord
    from edge_asr.runtime.alignment.result import Alignment as Alignment
    from edge_asr.runtime.backends import Backend as Backend
    from edge_asr.runtime.backends import create_backend as create_backend
    from edge_asr.runtime.decoding.beam import BeamDecoder as BeamDecoder
    from edge_asr.runtime.decoding.choice import attention_decoder as attention_decoder
    from edge_asr.runtime.decoding.choice import beam_decoder as beam_decoder
    from edge_asr.runtime.decoding.choice import rescoring_decoder as rescoring_decoder
    from edge_asr.runtime.decoding.decoder import Decoder as Decoder
    from edge_asr.runtime.decoding.decoder import Hypothesis as Hypothesis
    from edge_asr.runtime.decoding.decoder import TokenRuns as TokenRuns
    from edge_asr.runtime.decoding.grammar.read import grammar_decoder as grammar_decoder
    from edge_asr.runtime.decoding.grammar.recognition import GrammarDecoder as GrammarDecoder
    from edge_asr.runtime.decoding.greedy import GreedyDecoder as GreedyDecoder
    from edge_asr.runtime.decoding.greedy import greedy_decode as greedy_decode
    from edge_asr.runtime.decoding.hotwords import Hotword as Hotword
    from edge_asr.runtime.decoding.hotwords import read_hotwords as read_hotwords
    from edge_asr.runtime.engine.backend import TensorRTBackend as TensorRTBackend
    from edge_asr.runtime.features.extractor import FeatureExtractor as FeatureExtractor
    from edge_asr.runtime.features.extractor import FeatureStream as FeatureStream
    from edge_asr.runtime.live.endpointing import EndpointConfig as EndpointConfig
    from edge_asr.runtime.live.events import DeviceChange as DeviceChange
    from edge_asr.runtime.live.events import Error as Error
    from edge_asr.runtime.live.events import Final as Final
    from edge_asr.runtime.live.events import Gap as Gap
    from edge_asr.runtime.live.events import Partial as Partial
    from edge_asr.runtime.live.events import Unmatched as Unmatched
    from edge_asr.runtime.live.microphone import MicrophoneConfig as MicrophoneConfig
    from edge_asr.runtime.live.microphone import MicrophoneSource as MicrophoneSource
    from edge_asr.runtime.live.microphone import list_devices as list_devices
    from edge_asr.runtime.live.pcm_source import PcmSource as PcmSource
    from edge_asr.runtime.live.queue_source import QueueSource as QueueSource
    from edge_asr.runtime.live.recognizer import LiveRecognizer as LiveRecognizer
    from edge_asr.runtime.live.sources import AudioBlock as AudioBlock
    from edge_asr.runtime.live.sources import AudioSource as AudioSource
    from edge_asr.runtime.live.sources import FileSource as FileSource
    from edge_asr.runtime.live.sources import Loss as Loss
    from edge_asr.runtime.live.sources import Recorder as Recorder
    from edge_asr.runtime.live.sources import SourceChange as SourceChange
    from edge_asr.runtime.live.stream import LiveConfig as LiveConfig
    from edge_asr.runtime.live.stream import LiveStats as LiveStats
    from edge_asr.runtime.live.streaming_decoder import StreamingDecoder as StreamingDecoder
    from edge_asr.runtime.live.streaming_decoder import streaming_decoders as streaming_decoders
    from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend as OnnxRuntimeBackend
    from edge_asr.runtime.recognizer import Recognizer as Recognizer
    from edge_asr.runtime.stages import StageTime as StageTime
    from edge_asr.runtime.streaming_model import StreamingModel as StreamingModel
    from edge_asr.runtime.tested import load_tested as load_tested
    from edge_asr.runtime.transcript import GrammarResult as GrammarResult
    from edge_asr.runtime.transcript import Segment as Segment
    from edge_asr.runtime.transcript import Token as Token
    from edge_asr.runtime.transcript import Transcript as Transcript
    from edge_asr.runtime.transcript import Word as Word

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "AlignedWord": "alignment.result",
        "Alignment": "alignment.result",
        "AudioBlock": "live.sources",
        "AudioSource": "live.sources",
        "Backend": "backends",
        "BeamDecoder": "decoding.beam",
        "Decoder": "decoding.decoder",
        "DeviceChange": "live.events",
        "EndpointConfig": "live.endpointing",
        "Error": "live.events",
        "FeatureConfig": "edge_asr.feature_config",
        "FeatureExtractor": "features.extractor",
        "FeatureStream": "features.extractor",
        "FileSource": "live.sources",
        "Final": "live.events",
        "Gap": "live.events",
        "GrammarDecoder": "decoding.grammar.recognition",
        "GrammarResult": "transcript",
        "GreedyDecoder": "decoding.greedy",
        "Hotword": "decoding.hotwords",
        "Hypothesis": "decoding.decoder",
        "LiveConfig": "live.stream",
        "LiveRecognizer": "live.recognizer",
        "LiveStats": "live.stream",
        "Loss": "live.sources",
        "MicrophoneConfig": "live.microphone",
        "MicrophoneSource": "live.microphone",
        "OnnxRuntimeBackend": "onnxruntime_backend",
        "Partial": "live.events",
        "PcmSource": "live.pcm_source",
        "QueueSource": "live.queue_source",
        "Recognizer": "recognizer",
        "Recorder": "live.sources",
        "Segment": "transcript",
        "SourceChange": "live.sources",
        "StageTime": "stages",
        "StreamingDecoder": "live.streaming_decoder",
        "StreamingModel": "streaming_model",
        "TensorRTBackend": "engine.backend",
        "Token": "transcript",
        "TokenRuns": "decoding.decoder",
        "Transcript": "transcript",
        "Unmatched": "live.events",
        "Word": "transcript",
        "attention_decoder": "decoding.choice",
        "beam_decoder": "decoding.choice",
        "create_backend": "backends",
        "grammar_decoder": "decoding.grammar.read",
        "greedy_decode": "decoding.greedy",
        "list_devices": "live.microphone",
        "load_tested": "tested",
        "read_hotwords": "decoding.hotwords",
        "rescoring_decoder": "decoding.choice",
        "streaming_decoders": "live.streaming_decoder",
    },
)
