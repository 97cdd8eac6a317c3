"""/v1/realtime with the `openai` package."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.resources.realtime.realtime import RealtimeConnection
from serving_clients import Running, Speech, is_near, run, until

from edge_asr.audio import resample

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
# openai 3.57 still calls websockets as before 17.1.
pytestmark = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used:DeprecationWarning")
TEXTS = ["enter seven two five", "start recording", "go three meters and stop"]


@pytest.fixture
def connection(server: Running) -> Iterator[RealtimeConnection]:
    with (
        openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as made,
    ):
        assert made.recv().type == "session.created"
        yield made
    run(until(lambda: server.core.n_sessions == 0))


@pytest.fixture(scope="module")
def blocks(speech: Speech) -> list[str]:
    """The sample at 24 kHz with a second of silence, in blocks of 100 ms, as base64."""
    floats = resample(speech.astype(np.float32) / 32768, 16_000, 24_000)
    samples = np.append((floats * 32767).astype(np.int16), np.zeros(24_000, np.int16))
    return [base64.b64encode(samples[i : i + 2400].tobytes()).decode() for i in range(0, len(samples), 2400)]


def receive_until(connection: RealtimeConnection, kind: str, count: int = 1) -> list[Any]:
    """Events up to the `count`-th of a kind."""
    found: list[Any] = []
    while sum(event.type == kind for event in found) < count:
        found.append(connection.recv())
    return found


def update(connection: RealtimeConnection, **given: Any) -> Any:
    connection.session.update(session={"type": "transcription", "audio": {"input": given}})  # type: ignore[typeddict-item]
    return connection.recv()


def test_each_utterance_is_an_item(connection: RealtimeConnection, blocks: list[str]) -> None:
    for block in blocks:
        connection.input_audio_buffer.append(audio=block)
    events = receive_until(connection, COMPLETED, 3)
    completed = [event for event in events if event.type == COMPLETED]
    assert all(is_near(event.transcript, text) for event, text in zip(completed, TEXTS, strict=True))
    for item in completed:
        own = [event for event in events if getattr(event, "item_id", None) == item.item_id]
        deltas = "".join(event.delta for event in own if event.type == DELTA)
        # The stream hears a little less well than the model that makes the transcript.
        assert is_near(item.transcript[: len(deltas)], deltas, 0.7)
        order = [event.type for event in own if event.type != DELTA]
        assert order == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            COMPLETED,
        ]
        times = [getattr(own[0], "audio_start_ms", None), own[-3].audio_end_ms]
        assert times[1] - times[0] == pytest.approx(1500, abs=900)
    committed = [event for event in events if event.type == "input_audio_buffer.committed"]
    assert [event.previous_item_id for event in committed] == [None, *(e.item_id for e in committed[:-1])]


def test_without_detection_the_client_ends_an_item(connection: RealtimeConnection, blocks: list[str]) -> None:
    answer = update(connection, turn_detection=None, transcription={"model": "whisper-1", "language": "en"})
    assert answer.type == "session.updated"
    assert answer.session.audio.input.turn_detection is None
    for half in (blocks[:46], blocks[46:]):
        for block in half:
            connection.input_audio_buffer.append(audio=block)
        connection.input_audio_buffer.commit()
        events = receive_until(connection, COMPLETED)
        assert "input_audio_buffer.speech_started" not in {event.type for event in events}
        text = events[-1].transcript
        assert is_near(text, " ".join(TEXTS[:2])) or is_near(text, TEXTS[2])


def test_a_cleared_buffer_is_forgotten(connection: RealtimeConnection, blocks: list[str]) -> None:
    update(connection, turn_detection=None)
    for block in blocks[:20]:
        connection.input_audio_buffer.append(audio=block)
    connection.input_audio_buffer.clear()
    assert receive_until(connection, "input_audio_buffer.cleared")[-1].type == "input_audio_buffer.cleared"
    for block in blocks[28:50]:
        connection.input_audio_buffer.append(audio=block)
    connection.input_audio_buffer.commit()
    assert is_near(receive_until(connection, COMPLETED)[-1].transcript, TEXTS[1])


def test_a_rate_and_a_pause_of_the_clients_own(connection: RealtimeConnection, speech: Speech) -> None:
    form, detection = (
        {"type": "audio/pcm", "rate": 16_000},
        {"type": "server_vad", "silence_duration_ms": 200},
    )
    answer = update(connection, format=form, turn_detection=detection)
    assert answer.session.audio.input.turn_detection.silence_duration_ms == 200
    connection.input_audio_buffer.append(audio=base64.b64encode(speech.tobytes()).decode())
    events = receive_until(connection, COMPLETED, 2)
    assert is_near(events[-1].transcript, TEXTS[1])


def of_session(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": kind, "audio": {"input": given}}}


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"type": "response.create", "event_id": "mine"}, "response.create"),
        ({"type": "input_audio_buffer.append", "audio": "%"}, "audio is not base64"),
        ({"type": "input_audio_buffer.append", "audio": "QUJD"}, "a block has 3 bytes"),
        ({"type": "input_audio_buffer.append"}, "audio is not base64"),
        ({"type": "input_audio_buffer.commit"}, "the buffer is empty"),
        (of_session("realtime", {}), 'of the type "transcription"'),
        ({"type": "session.update", "session": {"type": "transcription", "audio": "loud"}}, "another form"),
        (of_session("transcription", {"format": {}}), "the format is None; send audio/pcm"),
        (of_session("transcription", {"transcription": {"model": "gpt-9"}}), "there is no model 'gpt-9'"),
        (
            of_session("transcription", {"turn_detection": {"type": "semantic_vad"}}),
            "turn_detection is 'semantic_vad'",
        ),
    ],
)
def test_a_wrong_message_is_an_error_and_no_end(
    connection: RealtimeConnection, message: dict[str, Any], sentence: str
) -> None:
    connection.send(message)  # type: ignore[arg-type]
    event = connection.recv()
    assert event.type == "error"
    assert sentence in event.error.message
    assert event.error.event_id == message.get("event_id")
    assert update(connection).type == "session.updated"
