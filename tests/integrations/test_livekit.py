"""The plug-in inside the real livekit-agents, through its own stream interfaces, without a server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("livekit.agents", reason="needs edge-asr[livekit]; scripts/test_integrations runs it")

from livekit import rtc
from livekit.agents import stt

from edge_asr.errors import BundleError, ConfigError
from edge_asr.integrations.livekit import STT
from edge_asr.runtime import Recognizer

Speech = npt.NDArray[np.int16]
Type = stt.SpeechEventType
pytestmark = pytest.mark.filterwarnings("default")  # warnings of the framework are its own


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


def frames_of(speech: Speech, rate: int = 16_000) -> list[rtc.AudioFrame]:
    """Frames of 20 ms, of one channel or more."""
    n, channels = rate // 50, 1 if speech.ndim == 1 else speech.shape[1]
    blocks = [speech[begin : begin + n] for begin in range(0, len(speech), n)]
    return [rtc.AudioFrame(block.tobytes(), rate, channels, len(block)) for block in blocks]


async def hear(plugin: STT, frames: list[rtc.AudioFrame]) -> list[stt.SpeechEvent]:
    async with plugin.stream() as stream:
        for number, frame in enumerate(frames):
            stream.push_frame(frame)
            if number == len(frames) // 2:
                stream.flush()  # has no meaning here, and does no harm
        stream.end_input()
        return [event async for event in stream]


def texts(events: list[stt.SpeechEvent]) -> list[str]:
    return [event.alternatives[0].text for event in events if event.type == Type.FINAL_TRANSCRIPT]


def test_a_stream_hears_what_the_runtime_hears(
    recognizer: Recognizer, speech: Speech, finals: list[str]
) -> None:
    plugin = STT(recognizer)
    metrics: list[Any] = []
    plugin.on("metrics_collected", metrics.append)
    events = run(hear(plugin, frames_of(speech)))
    assert texts(events) == finals
    kinds = [event.type for event in events]
    transcripts = (Type.INTERIM_TRANSCRIPT, Type.FINAL_TRANSCRIPT)
    around = [kind for kind in kinds if kind not in (*transcripts, Type.RECOGNITION_USAGE)]
    assert around == [Type.START_OF_SPEECH, Type.END_OF_SPEECH] * len(finals)
    assert kinds.index(Type.START_OF_SPEECH) < kinds.index(Type.INTERIM_TRANSCRIPT)
    assert kinds.index(Type.INTERIM_TRANSCRIPT) < kinds.index(Type.FINAL_TRANSCRIPT)
    data = next(event.alternatives[0] for event in events if event.type == Type.FINAL_TRANSCRIPT)
    assert (str(data.language), " ".join(data.words)) == ("en", data.text)
    assert data.words[0].start_time == pytest.approx(0.72, abs=0.2)
    assert 0.3 < data.confidence <= 1
    usage = [event.recognition_usage for event in events if event.type == Type.RECOGNITION_USAGE]
    assert 0 < sum(one.audio_duration for one in usage) <= len(speech) / 16_000 + 0.01
    assert {metric.metadata.model_name for metric in metrics} == {"tiny-en"}
    assert {metric.metadata.model_provider for metric in metrics} == {"edge-asr"}


def test_two_streams_at_once_at_other_rates(
    recognizer: Recognizer, speech: Speech, finals: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran_in: set[str] = set()
    run_model = recognizer.backend.log_probs

    def noting(*arguments: Any, **options: Any) -> Any:
        ran_in.add(threading.current_thread().name)
        return run_model(*arguments, **options)

    monkeypatch.setattr(recognizer.backend, "log_probs", noting)
    plugin = STT(recognizer, partials=False)
    assert not plugin.capabilities.interim_results
    stereo = np.repeat(np.stack([speech, speech], axis=1), 3, axis=0)

    async def both() -> Any:
        return await asyncio.gather(hear(plugin, frames_of(speech)), hear(plugin, frames_of(stereo, 48_000)))

    plain, resampled = run(both())
    assert texts(plain) == finals
    assert len(texts(resampled)) == len(finals)
    assert Type.INTERIM_TRANSCRIPT not in {event.type for event in plain}
    assert ran_in
    assert threading.current_thread().name not in ran_in


def test_recognize(recognizer: Recognizer, speech: Speech) -> None:
    plugin = STT(recognizer)
    frames = frames_of(speech)
    event = run(plugin.recognize(frames))
    (data,) = event.alternatives
    assert event.type == Type.FINAL_TRANSCRIPT
    assert data.text == recognizer.transcribe(speech, 16_000).text
    assert " ".join(data.words) == data.text
    silence = run(plugin.recognize(frames_of(np.zeros(16_000, np.int16))))
    assert silence.alternatives[0].text == ""
    assert silence.alternatives[0].words is None


def test_a_stream_that_is_closed_in_mid_utterance_leaves_no_thread(
    recognizer: Recognizer, speech: Speech
) -> None:
    async def work(n: int) -> None:
        stream = STT(recognizer).stream()
        for frame in frames_of(speech[:n]):
            stream.push_frame(frame)
        await asyncio.sleep(0.1)
        await stream.aclose()

    run(work(24_000))
    run(work(0))


def test_what_cannot_be(tmp_path: Path, speech: Speech) -> None:
    with pytest.raises(ConfigError, match="endpoint preset is 'never'; it must be one of"):
        STT(endpoint="never")  # type: ignore[arg-type]
    plugin = STT(tmp_path / "none")
    errors: list[Any] = []
    plugin.on("error", errors.append)
    with pytest.raises(BundleError):
        run(hear(plugin, frames_of(speech[:16_000])))
    assert [error.recoverable for error in errors] == [False]
    with pytest.raises(BundleError):
        plugin.prewarm()


def test_the_example(repository: Path, sample_path: Path) -> None:
    example = repository / "examples" / "integrations" / "livekit_file.py"
    done = subprocess.run(
        [sys.executable, str(example), str(sample_path), "10"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    finals = [line for line in done.stdout.splitlines() if not line.startswith("...")]
    assert "enter" in finals[0]
    assert len(finals) >= 3
