"""The OpenAI API with the `openai` package, as people use it, and with httpx for what that does not send."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from serving_clients import HTTP, MakeServer, Running, is_near, run, until

from edge_asr.runtime import Recognizer
from edge_asr.transcript_formats import format_transcript

TEXT = "enter seven two five start recording go three meters and stop"


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: Running, content: bytes, **fields: Any) -> httpx.Response:
    files = {"file": ("sound", content)}
    url = f"{server.http}/v1/audio/transcriptions"
    return HTTP.post(url, files=files, data={"model": "tiny-en", **fields}, timeout=30)


def message_of(response: httpx.Response) -> str:
    message: str = response.json()["error"]["message"]
    return message


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-en", "whisper-1"]
    assert client.models.retrieve("tiny-en").owned_by == "edge-asr"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'; this server has tiny-en"):
        client.models.retrieve("gpt-9")


def test_text_and_json(client: openai.OpenAI, sample_path: Path) -> None:
    with sample_path.open("rb") as file:
        answer = client.audio.transcriptions.create(model="whisper-1", file=file)
    assert is_near(answer.text, TEXT)
    assert answer.usage is not None
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 8)
    text = client.audio.transcriptions.create(model="tiny-en", file=sample_path, response_format="text")
    assert text == answer.text + "\n"


def test_words_and_segments_have_times(
    client: openai.OpenAI, sample_path: Path, recognizer: Recognizer
) -> None:
    expected = recognizer.transcribe_file(sample_path)
    answer = client.audio.transcriptions.create(
        model="tiny-en",
        file=sample_path,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert answer.duration == pytest.approx(expected.duration_s, abs=1e-3)
    assert answer.words is not None
    assert [(w.word, w.start, w.end) for w in answer.words] == [
        (w.text, round(w.start_s, 3), round(w.end_s, 3)) for w in expected.words
    ]
    assert answer.segments is not None
    assert [s.text for s in answer.segments] == [s.text for s in expected.segments]
    assert all(-1 < s.avg_logprob <= 0 for s in answer.segments)


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles(client: openai.OpenAI, sample_path: Path, recognizer: Recognizer, form: Any) -> None:
    answer = client.audio.transcriptions.create(model="tiny-en", file=sample_path, response_format=form)
    assert str(answer) == format_transcript(recognizer.transcribe_file(sample_path), form)


def test_a_streamed_answer_comes_utterance_by_utterance(client: openai.OpenAI, sample_path: Path) -> None:
    events = list(client.audio.transcriptions.create(model="tiny-en", file=sample_path, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) == 3
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(deltas)
    assert is_near(events[-1].text, TEXT)


def test_hotwords_grammar_and_digits(server: Running, sample_path: Path) -> None:
    content = sample_path.read_bytes()
    assert "enter 725" in post(server, content, digits="true").json()["text"]
    answer = post(server, content, grammar="enter seven two five\nstop").json()
    assert (answer["matched"], answer["text"]) == (False, "")
    refused = post(server, content, grammar="stop", hotwords="go")
    assert refused.status_code == 400
    assert "a grammar takes neither hotwords nor a language model" in message_of(refused)


def wav(n_samples: int, *, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((n_samples, channels), np.int16), rate, format="WAV")
    return file.getvalue()


def test_silence_is_no_text(client: openai.OpenAI) -> None:
    for stream in (False, True):
        answer: Any = client.audio.transcriptions.create(
            model="tiny-en", file=("a.wav", wav(16_000)), stream=stream
        )
        assert (list(answer)[-1] if stream else answer).text == ""


@pytest.mark.parametrize(
    ("content", "fields", "status", "sentence"),
    [
        (b"", {}, 400, "the recording begins with b'', which is no sound file; send WAV"),
        (b"#!/bin/sh", {}, 400, "which is no sound file"),
        (b"RIFF" + bytes(100), {}, 400, "the recording cannot be read as sound"),
        (wav(10, channels=9), {}, 413, "the recording has 9 channels at 16000 Hz; at most 8"),
        (wav(10, rate=384_000), {}, 413, "1 channels at 384000 Hz"),
        (wav(10), {"model": "/etc/passwd"}, 404, "there is no model '/etc/passwd'"),
        (wav(10), {"response_format": "diarized_json"}, 400, "response_format is 'diarized_json'; give json"),
        (wav(10), {"include[]": "logprobs"}, 400, "include[] asks for what is not here"),
        (wav(10), {"stream": "perhaps"}, 400, "stream is 'perhaps'; give true or false"),
        (wav(10), {"grammar": "stop ("}, 400, "line 1"),
        (b"nonsense", {"stream": "true"}, 400, "which is no sound file"),
    ],
)
def test_what_is_refused(
    server: Running, content: bytes, fields: dict[str, str], status: int, sentence: str
) -> None:
    response = post(server, content, **fields)
    assert sentence in message_of(response)
    assert response.status_code == status
    assert server.core.n_requests == 0


def test_requests_that_are_no_form(server: Running) -> None:
    url = f"{server.http}/v1/audio/transcriptions"
    assert "the form has no file" in message_of(HTTP.post(url, content=b"x"))
    assert "the form has no file" in message_of(HTTP.post(url, data={"file": "/etc/passwd"}))
    bad = HTTP.post(url, content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert (bad.status_code, message_of(bad)) == (400, "Missing boundary in multipart.")
    assert HTTP.get(url).status_code == 405
    assert HTTP.get(f"{server.http}/etc/passwd").status_code == 404


def test_sizes_and_lengths_have_limits(make_server: MakeServer, sample_path: Path) -> None:
    with make_server(max_upload_bytes=1 << 20, max_session_s=5.0) as running:
        too_large = post(running, b"RIFF" + bytes(2 << 20))
        assert too_large.status_code == 413
        assert "the request is larger than 1 MiB" in message_of(too_large)

        def without_length() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            yield from [bytes(1 << 16)] * 32

        url, kind = (
            f"{running.http}/v1/audio/transcriptions",
            {"Content-Type": "multipart/form-data; boundary=b"},
        )
        chunked = HTTP.post(url, content=without_length(), headers=kind)
        assert chunked.status_code == 413
        too_long = post(running, sample_path.read_bytes())
        assert too_long.status_code == 413
        assert "the recording is longer than 5 s" in message_of(too_long)
        # A few bytes can be hours of silence: what counts is what comes out.
        bomb = io.BytesIO()
        soundfile.write(bomb, np.zeros(16_000 * 600, np.int16), 16_000, format="FLAC")
        assert len(bomb.getvalue()) < 1 << 20
        assert post(running, bomb.getvalue()).status_code == 413
        assert running.core.n_requests == 0


def test_a_request_that_does_not_arrive_is_given_up(make_server: MakeServer) -> None:
    import socket
    from urllib.parse import urlsplit

    with make_server(idle_s=4.0, max_requests=1) as running:
        place = urlsplit(running.http)
        with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
            raw.sendall(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            )
            run(until(lambda: running.core.n_requests == 1))
            refused = post(running, wav(10))
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
            assert "all 1 places for recordings are taken" in message_of(refused)
            answer = b""
            while b"came for 4 s" not in answer and (data := raw.recv(4096)):
                answer += data
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"nothing of the request came for 4 s" in answer
        run(until(lambda: running.core.n_requests == 0))


def test_a_client_that_leaves_frees_its_place(make_server: MakeServer) -> None:
    long = io.BytesIO()
    soundfile.write(
        long, np.random.default_rng(0).normal(0, 3000, 16_000 * 600).astype(np.int16), 16_000, format="WAV"
    )
    with make_server() as running:
        with pytest.raises(httpx.ReadTimeout):
            HTTP.post(
                f"{running.http}/v1/audio/transcriptions",
                files={"file": ("long.wav", long.getvalue())},
                timeout=httpx.Timeout(10, read=0.5),
            )
        run(until(lambda: running.core.n_requests == 0, within_s=5))


def test_a_wav_of_unknown_length_is_read_to_its_end(
    server: Running, sample_path: Path, sample_text: str
) -> None:
    samples, rate = soundfile.read(sample_path, dtype="int16")
    data = samples.tobytes()
    # As programs write it to a pipe: the sizes are the largest numbers there are.
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data",
        0xFFFFFFFF,
    )  # fmt: skip
    assert post(server, header + data).json()["text"] == sample_text
