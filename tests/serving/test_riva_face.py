"""The Riva face with `nvidia-riva-client`: what is heard, boosted and refused; nothing is left behind.

It is long, because whatever needs the client's package is tested in one place.
"""

from __future__ import annotations

import importlib
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
import trustme
from google.protobuf import descriptor_pb2
from pypi import package_folder
from serving_clients import MakeServer, Running, Speech, is_near, run, until

from edge_asr.errors import ConfigError
from edge_asr.serving import riva_face
from edge_asr.serving.access import Access
from edge_asr.serving.riva_face import RivaFace
from edge_asr.serving.riva_messages import ENCODINGS, MESSAGES
from edge_asr.serving.tls import TlsFiles

grpc = pytest.importorskip("grpc", reason="needs edge-asr[riva]")

# Its requirements keep websockets at 15, so it is not among the packages of the tests.
CLIENT = "nvidia-riva-client==2.28.0"
TOKEN = "correct-horse-battery-staple"
FIRST_S = 2.9
"""The first phrase of the sample with the pause behind it."""
MakeRiva = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="module")
def riva(pytestconfig: pytest.Config) -> Iterator[Any]:
    """The client's package."""
    folder = str(package_folder(pytestconfig, CLIENT))
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("riva.client")
    except RuntimeError as error:  # raised by what its authors generated
        pytest.skip(f"{CLIENT} needs a newer grpcio: {error}")
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def make_riva(make_server: MakeServer) -> MakeRiva:
    @contextmanager
    def make(
        *, access: Access | None = None, tls: TlsFiles | None = None, **limits: Any
    ) -> Iterator[Running]:
        def make_face(core: Any) -> RivaFace:
            return RivaFace(core, host="127.0.0.1", port=0, access=access or Access(), tls=tls)

        with make_server(make_face=make_face, **limits) as running:
            yield running

    return make


@pytest.fixture(scope="module")
def server(make_riva: MakeRiva) -> Iterator[Running]:
    with make_riva() as running:
        yield running


def place_of(running: Running) -> str:
    return urlsplit(running.http).netloc


def service(riva: Any, running: Running, *metadata: list[str]) -> Any:
    return riva.ASRService(riva.Auth(uri=place_of(running), metadata_args=list(metadata)))


def configure(riva: Any, **fields: Any) -> Any:
    return riva.RecognitionConfig(**{"language_code": "en-US", "verbatim_transcripts": True, **fields})


def live(riva: Any, config: Any, *, interim_results: bool = False) -> Any:
    return riva.StreamingRecognitionConfig(config=config, interim_results=interim_results)


def pieces(data: bytes, n: int = 3200) -> Iterator[bytes]:
    return (data[begin : begin + n] for begin in range(0, len(data), n))


def recording(samples: Speech, form: str, subtype: str, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype, endian="FILE")
    return file.getvalue()


def transcripts(responses: Any) -> list[str]:
    """The texts of final results."""
    results = [result for response in responses for result in response.results if result.is_final]
    return [result.alternatives[0].transcript for result in results if result.alternatives]


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code().name, refused.value.details()


def test_every_field_is_as_in_the_descriptors_of_the_client(riva: Any) -> None:
    asr = importlib.import_module("riva.client.proto.riva_asr_pb2")
    common = importlib.import_module("riva.client.proto.riva_common_pb2")
    theirs: dict[str, Any] = {"RequestId": common.RequestId.DESCRIPTOR}

    def collect(descriptors: Any) -> None:
        for descriptor in descriptors:
            theirs[descriptor.name] = descriptor
            collect(descriptor.nested_types)

    collect(asr.DESCRIPTOR.message_types_by_name.values())
    n_fields = 0
    for name, message in vars(MESSAGES).items():
        twin = theirs["CustomConfigurationEntry" if name == "Entry" else name]
        for field in message.DESCRIPTOR.fields:
            other = twin.fields_by_name[field.name]
            assert (field.number, field.is_repeated) == (other.number, other.is_repeated), field.full_name
            if other.type == descriptor_pb2.FieldDescriptorProto.TYPE_ENUM:  # a number on the wire as well
                assert field.type == descriptor_pb2.FieldDescriptorProto.TYPE_INT32
            else:
                assert field.type == other.type, field.full_name
            if field.message_type is not None and field.message_type.name != "Entry":
                assert field.message_type.name == other.message_type.name
            n_fields += 1
    assert n_fields > 45
    assert {name: riva.AudioEncoding.Value(name) for name in ENCODINGS} == ENCODINGS


def test_a_recording(riva: Any, server: Running, sample_path: Path) -> None:
    client = service(riva, server)
    config = configure(riva, enable_word_time_offsets=True)
    response = client.offline_recognize(sample_path.read_bytes(), config)
    found = [result.alternatives[0] for result in response.results]
    heard = "".join(one.transcript for one in found)
    assert is_near(heard, "enter seven two five start recording go three meters and stop")
    (first, *_) = found
    assert [word.word for word in first.words] == ["enter", "seven", "two", "five"]
    assert first.words[0].start_time == pytest.approx(720, abs=100)  # ms
    assert 0.5 < first.confidence <= 1
    assert response.results[0].audio_processed == pytest.approx(7.8, abs=0.01)
    plain = client.offline_recognize(sample_path.read_bytes(), riva.RecognitionConfig())
    assert plain.results[0].alternatives[0].transcript == "enter 725 "  # Riva writes digits unless told
    assert not plain.results[0].alternatives[0].words


@pytest.mark.parametrize(
    ("form", "subtype", "encoding", "rate"),
    [
        ("WAV", "PCM_16", 0, 16_000),
        ("WAV", "ULAW", 1, 16_000),
        ("FLAC", "PCM_16", 2, 16_000),
        ("OGG", "OPUS", 4, 16_000),
        ("RAW", "PCM_16", 1, 48_000),
        ("RAW", "ULAW", 3, 16_000),
        ("RAW", "ALAW", 20, 16_000),
    ],
)
def test_encodings(
    riva: Any, server: Running, speech: Speech, form: str, subtype: str, encoding: int, rate: int
) -> None:
    samples = np.repeat(speech[: round(FIRST_S * 16_000)], rate // 16_000)
    data = recording(samples, form, subtype, rate)
    config = configure(riva, encoding=encoding, sample_rate_hertz=rate if form == "RAW" else 0)
    client = service(riva, server)
    (live_text,) = transcripts(client.streaming_response_generator(pieces(data, 1999), live(riva, config)))
    whole = client.offline_recognize(data, config).results[0].alternatives[0].transcript
    assert is_near(live_text, "enter seven two five ")
    assert is_near(whole, "enter seven two five ")


def test_a_stream_hears_what_the_runtime_hears(
    riva: Any, server: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    config = configure(riva, encoding=1, sample_rate_hertz=16_000, enable_word_time_offsets=True)
    streaming = live(riva, config, interim_results=True)
    responses = list(service(riva, server).streaming_response_generator(pieces(speech.tobytes()), streaming))
    assert transcripts(responses) == [f"{final[1]} " for final in finals]
    results = [result for response in responses for result in response.results]
    words = [[word.word for word in result.alternatives[0].words] for result in results if result.is_final]
    assert words == [final[3] for final in finals]
    interim = [result for result in results if not result.is_final]
    assert interim
    assert len(results[0].alternatives[0].transcript) < len(finals[0][1])
    times = [result.audio_processed for result in results]
    assert times == sorted(times)


def test_boosted_words(riva: Any, server: Running, sample_path: Path, speech: Speech) -> None:
    client = service(riva, server)

    def hear(*boosted: str, boost: float = 0.0) -> tuple[str, str]:
        config = configure(riva, encoding=1, sample_rate_hertz=16_000)
        config.custom_configuration["language_model"] = "false"
        riva.add_word_boosting_to_config(config, list(boosted) or None, boost)
        whole = client.offline_recognize(sample_path.read_bytes(), config)
        streamed = client.streaming_response_generator(pieces(speech.tobytes()), live(riva, config))
        return "".join(one.alternatives[0].transcript for one in whole.results), "".join(
            transcripts(streamed)
        )

    # The phrase is no word of the sample; so strong a wish makes it one.
    assert all(" star " not in text for text in hear())
    assert all(" star " in text for text in hear("star", boost=100))
    assert hear("star", boost=0.1) == hear()
    code, sentence = refusal(lambda: hear("star", boost=-10))
    assert (code, sentence[:12]) == ("INVALID_ARGUMENT", "boost is -10")


def test_a_longer_pause_and_a_grammar(riva: Any, server: Running, speech: Speech) -> None:
    client = service(riva, server)
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    riva.add_endpoint_parameters_to_config(config, 0, 0, 3000, 0, 0, 0)
    found = transcripts(client.streaming_response_generator(pieces(speech.tobytes()), live(riva, config)))
    assert len(found) == 1
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    config.custom_configuration["grammar"] = "start recording\ngo {n 1..9} meters and stop"
    responses = list(client.streaming_response_generator(pieces(speech.tobytes()), live(riva, config)))
    assert transcripts(responses) == ["start recording ", "go three meters and stop "]
    assert not responses[0].results[0].alternatives  # an utterance, but no phrase


def test_which_model_there_is(riva: Any, server: Running) -> None:
    asr = importlib.import_module("riva.client.proto.riva_asr_pb2")
    stub = service(riva, server).stub
    models = stub.GetRivaSpeechRecognitionConfig(asr.RivaSpeechRecognitionConfigRequest()).model_config
    assert [(model.model_name, model.parameters["type"]) for model in models] == [
        ("tiny-en", "online"),
        ("tiny-en", "offline"),
    ]
    assert models[0].parameters["language_code"] == "en"
    request = asr.RivaSpeechRecognitionConfigRequest(model_name="citrinet")
    code, sentence = refusal(lambda: stub.GetRivaSpeechRecognitionConfig(request))
    assert (code, sentence) == ("NOT_FOUND", "there is no model 'citrinet'; this server has 'tiny-en'")


def test_health_needs_no_token(riva: Any, make_riva: MakeRiva) -> None:
    health = importlib.import_module("riva.client.proto.health_pb2")
    stubs = importlib.import_module("riva.client.proto.health_pb2_grpc")
    with make_riva(access=Access(token=TOKEN)) as running:
        auth = riva.Auth(uri=place_of(running))
        answer = stubs.HealthStub(auth.channel).Check(health.HealthCheckRequest())
        assert answer.status == health.HealthCheckResponse.SERVING


def test_a_request_id_comes_back(riva: Any, server: Running, speech: Speech) -> None:
    asr = importlib.import_module("riva.client.proto.riva_asr_pb2")
    data = recording(speech[: round(FIRST_S * 16_000)], "FLAC", "PCM_16")
    request = asr.RecognizeRequest(config=configure(riva), audio=data)
    request.id.value = "seven"
    assert service(riva, server).stub.Recognize(request).id.value == "seven"


@pytest.mark.parametrize(
    ("fields", "code", "sentence"),
    [
        ({"language_code": "de-DE"}, "INVALID_ARGUMENT", "language_code is 'de-DE'; this model hears 'en'"),
        ({"model": "parakeet"}, "NOT_FOUND", "there is no model 'parakeet'"),
        ({"encoding": 77}, "INVALID_ARGUMENT", "encoding is 77; give LINEAR_PCM, FLAC"),
        ({"sample_rate_hertz": 12}, "INVALID_ARGUMENT", "the sample rate is 12; give whole Hz"),
        ({"audio_channel_count": 99}, "INVALID_ARGUMENT", "audio_channel_count is 99; give 1 to 8"),
        (
            {"audio_channel_count": 2, "enable_separate_recognition_per_channel": True},
            "INVALID_ARGUMENT",
            "enable_separate_recognition_per_channel is on",
        ),
        (
            {"diarization_config": {"enable_speaker_diarization": True}},
            "INVALID_ARGUMENT",
            "enable_speaker_diarization is on",
        ),
        (
            {"endpointing_config": {"stop_history": 5}},
            "INVALID_ARGUMENT",
            "stop_history is 5 ms; give 100 to",
        ),
        ({"custom_configuration": {"path": "/"}}, "INVALID_ARGUMENT", "custom_configuration has 'path'"),
        ({"custom_configuration": {"grammar": "go ("}}, "INVALID_ARGUMENT", "line 1"),
        ({"speech_contexts": [{"phrases": ["ÄÖÜ"]}]}, "INVALID_ARGUMENT", "cannot spell the hotword"),
        ({"speech_contexts": [{"phrases": [""]}]}, "INVALID_ARGUMENT", "a hotword is ''"),
    ],
)
def test_what_is_not_here_is_refused(
    riva: Any, server: Running, speech: Speech, fields: dict[str, Any], code: str, sentence: str
) -> None:
    client, config = service(riva, server), configure(riva, **fields)
    data = speech[:16_000].tobytes()
    for call in (
        lambda: client.offline_recognize(data, config),
        lambda: list(client.streaming_response_generator([data], live(riva, config))),
    ):
        found, message = refusal(call)
        assert found == code
        assert sentence in message
    run(until(lambda: server.core.n_sessions == server.core.n_requests == 0))


def test_a_token(riva: Any, make_riva: MakeRiva, sample_path: Path) -> None:
    with make_riva(access=Access(token=TOKEN)) as running:
        config = riva.RecognitionConfig()

        def call(*metadata: list[str]) -> Any:
            client = service(riva, running, *metadata)
            list(client.streaming_response_generator([bytes(3200)], live(riva, config)))
            return client.offline_recognize(sample_path.read_bytes(), config)

        assert refusal(call) == (
            "UNAUTHENTICATED",
            "a token is required: send Authorization: Bearer TOKEN",
        )
        assert refusal(lambda: call(["authorization", f"Bearer {TOKEN}x"])) == (
            "UNAUTHENTICATED",
            "the token is wrong",
        )
        assert refusal(lambda: call(["authorization", f"Basic {TOKEN}"]))[0] == "UNAUTHENTICATED"
        assert call(["authorization", f"Bearer {TOKEN}"]).results
        page = [["authorization", f"Bearer {TOKEN}"], ["origin", "http://127.0.0.1"]]
        assert refusal(lambda: call(*page))[0] == "PERMISSION_DENIED"


def test_tls(riva: Any, make_riva: MakeRiva, sample_path: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = TlsFiles(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    certificate.private_key_pem.write_to_path(str(files.key))
    certificate.cert_chain_pems[0].write_to_path(str(files.certificate))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with make_riva(tls=files) as running:
        assert running.http.startswith("grpcs://")
        auth = riva.Auth(ssl_root_cert=tmp_path / "ca.pem", uri=place_of(running))
        assert riva.ASRService(auth).offline_recognize(sample_path.read_bytes(), configure(riva)).results


def test_limits(riva: Any, make_riva: MakeRiva, speech: Speech) -> None:
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    with make_riva(max_sessions=1, max_requests=1, max_upload_bytes=1 << 20, max_session_s=3.0) as running:
        client = service(riva, running)
        occupant = client.stub.StreamingRecognize(iter(NeverEnding(riva, config)))
        run(until(lambda: running.core.n_sessions == 1))
        busy = refusal(lambda: list(client.streaming_response_generator([b"xx"], live(riva, config))))
        assert busy[0] == "RESOURCE_EXHAUSTED"
        assert "all 1 places for sessions are taken" in busy[1]
        occupant.cancel()
        run(until(lambda: running.core.n_sessions == 0))
        assert refusal(lambda: client.offline_recognize(bytes(3 << 20), config))[0] == "RESOURCE_EXHAUSTED"
        long = speech[: round(3.5 * 16_000)].tobytes()
        code, sentence = refusal(lambda: client.offline_recognize(long, config))
        assert (code, sentence[:32]) == ("RESOURCE_EXHAUSTED", "the recording is longer than 3 s")
        heard: list[str] = []

        def listen() -> None:
            for response in client.streaming_response_generator(pieces(long), live(riva, config)):
                heard.extend(transcripts([response]))

        assert refusal(listen) == ("RESOURCE_EXHAUSTED", "a session may last 3 s")
        assert heard == ["enter seven two five "]


def test_connections_are_counted_and_silent_ones_closed(
    riva: Any, make_riva: MakeRiva, sample_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riva_face, "_CONNECTIONS_BESIDE", 0)
    monkeypatch.setattr(riva_face, "_HANDSHAKE_S", 8)

    def count_closed(connections: list[socket.socket]) -> int:
        n_closed = 0
        for connection in connections:
            try:
                while connection.recv(4096):  # what the server says first
                    pass
                n_closed += 1
            except ConnectionResetError:
                n_closed += 1
            except TimeoutError:
                pass
        return n_closed

    with make_riva(max_sessions=1, max_requests=1) as running:
        host, port = place_of(running).split(":")
        silent = [socket.create_connection((host, int(port)), timeout=1.0) for _ in range(6)]
        assert count_closed(silent) >= 1  # of the four that are too many, long before the others
        for connection in silent:
            connection.settimeout(40)
        assert count_closed(silent) == 6
        for connection in silent:
            connection.close()
        config = configure(riva)
        assert service(riva, running).offline_recognize(sample_path.read_bytes(), config).results


class NeverEnding:
    """Requests of a client that goes on: a config, some sound, then nothing until it is told."""

    def __init__(self, riva: Any, config: Any, sound: bytes = b"") -> None:
        asr = importlib.import_module("riva.client.proto.riva_asr_pb2")
        self.requests = [asr.StreamingRecognizeRequest(streaming_config=live(riva, config))]
        self.requests += [asr.StreamingRecognizeRequest(audio_content=piece) for piece in pieces(sound)]
        self.is_over = False

    def __iter__(self) -> Iterator[Any]:
        yield from self.requests
        end = time.monotonic() + 20
        while not self.is_over and time.monotonic() < end:
            time.sleep(0.02)


def test_silent_clients_are_ended_with_what_they_said(riva: Any, make_riva: MakeRiva, speech: Speech) -> None:
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    with make_riva(idle_s=0.7) as running:
        client = service(riva, running)
        heard: list[str] = []

        def listen(sound: bytes) -> None:
            for response in client.stub.StreamingRecognize(iter(NeverEnding(riva, config, sound))):
                heard.extend(transcripts([response]))

        idle = ("DEADLINE_EXCEEDED", "no sound came for 0.7 s")
        assert refusal(lambda: listen(speech[: round(2.0 * 16_000)].tobytes())) == idle
        assert heard == ["enter seven two five "]
        assert refusal(lambda: listen(b"")) == idle


def test_a_call_that_is_cancelled_leaves_nothing_and_disturbs_nobody(
    riva: Any, server: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    client = service(riva, server)
    flac = recording(speech[:24_000], "FLAC", "PCM_16")  # its thread has to end too
    for sound in (speech[:24_000].tobytes(), flac, flac[:50], b""):
        requests = NeverEnding(riva, config, sound)
        call = client.stub.StreamingRecognize(iter(requests))
        run(until(lambda: server.core.n_sessions == 1))
        other = client.streaming_response_generator(pieces(speech.tobytes()), live(riva, config))
        first = next(iter(other))
        call.cancel()
        assert transcripts([first, *other]) == [f"{final[1]} " for final in finals]
        run(until(lambda: server.core.n_sessions == 0))
        requests.is_over = True


def test_garbage(riva: Any, server: Running, speech: Speech) -> None:
    asr = importlib.import_module("riva.client.proto.riva_asr_pb2")
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    client, rng = service(riva, server), np.random.default_rng(1)
    noise = rng.bytes(4000)
    channel = riva.Auth(uri=place_of(server)).channel
    raw = channel.stream_stream("/nvidia.riva.asr.RivaSpeechRecognition/StreamingRecognize")
    first = asr.StreamingRecognizeRequest(streaming_config=live(riva, config)).SerializeToString()
    said = [asr.StreamingRecognizeRequest(audio_content=piece).SerializeToString()
            for piece in pieces(speech[: round(2.2 * 16_000)].tobytes())]  # fmt: skip

    def listen(*requests: bytes) -> list[Any]:
        heard.clear()
        for message in raw(iter(requests)):
            heard.append(asr.StreamingRecognizeResponse.FromString(message))
        return heard

    heard: list[Any] = []
    no_message = "the message is no StreamingRecognizeRequest"
    for requests, sentence, texts in (
        ((), "the call ended without a message", []),
        ((noise,), no_message, []),
        ((said[0],), "the first message has no streaming_config", []),
        ((first, *said, noise), no_message, ["enter seven two five "]),
        ((first, *said, first), "a second streaming_config came", ["enter seven two five "]),
    ):
        code, message = refusal(lambda requests=requests: listen(*requests))
        assert (code, message[: len(sentence)]) == ("INVALID_ARGUMENT", sentence)
        assert transcripts(heard) == texts
    assert listen(first) == []  # no sound, no words
    for data, encoding, sentence in (
        (b"fLaC" + noise, 2, "the sound cannot be decoded"),
        (b"OggS" + noise, 4, "the sound cannot be decoded"),
        (b"RIFF" + noise + b"data" + noise, 1, "the header of the WAV file cannot be read"),
        (noise, 2, "the sound begins with"),
    ):
        config = configure(riva, encoding=encoding)
        stream = live(riva, config)
        code, message = refusal(lambda d=data, s=stream: list(client.streaming_response_generator([d], s)))
        assert (code, message[: len(sentence)]) == ("INVALID_ARGUMENT", sentence)
        assert refusal(lambda d=data, c=config: client.offline_recognize(d, c))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: client.offline_recognize(b"", config))[1].startswith("the request has no audio")
    with socket.create_connection(place_of(server).split(":"), timeout=10) as plain:  # no HTTP/2 at all
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + noise)
        plain.settimeout(10)
        while plain.recv(4096):
            pass
    run(until(lambda: server.core.n_sessions == server.core.n_requests == 0))


def test_the_example(
    riva: Any, server: Running, repository: Path, sample_path: Path, pytestconfig: pytest.Config
) -> None:
    example = repository / "examples" / "serve" / "riva_client.py"
    command = [sys.executable, str(example), str(sample_path), place_of(server), "20", "recording"]
    environment = {**os.environ, "PYTHONPATH": str(package_folder(pytestconfig, CLIENT))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    finals = [line.split() for line in done.stdout.splitlines() if not line.startswith("...")]
    assert finals[0][2:6] == ["enter", "seven", "two", "five"]
    assert len(finals) == 3


def test_a_stopping_server_delivers_the_last_final(riva: Any, make_riva: MakeRiva, speech: Speech) -> None:
    config = configure(riva, encoding=1, sample_rate_hertz=16_000)
    with make_riva() as running:
        sound = speech[: round(4.5 * 16_000)].tobytes()
        heard: list[str] = []

        def listen() -> None:
            for response in service(riva, running).stub.StreamingRecognize(
                iter(NeverEnding(riva, config, sound))
            ):
                if not heard:
                    running.stop()
                heard.extend(transcripts([response]))

        assert refusal(listen) == ("UNAVAILABLE", "the server is stopping")
        first, second = heard
        assert first == "enter seven two five "
        assert is_near(second, "start recording ")
    assert running.is_clean is True


def test_a_port_that_is_taken(make_riva: MakeRiva, server: Running) -> None:
    port = urlsplit(server.http).port
    assert port is not None

    async def start() -> None:
        await RivaFace(server.core, host="127.0.0.1", port=port, access=Access()).start()

    with pytest.raises(ConfigError, match=rf"cannot listen at 127.0.0.1, port {port}: it is taken"):
        run(start())
