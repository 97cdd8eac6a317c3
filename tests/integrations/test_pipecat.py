"""The service inside the real Pipecat: pipelines that a file is fed into."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pipecat", reason="needs edge-asr[pipecat]; scripts/test_integrations runs it")

from pipecat.frames.frames import (
    CancelFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    STTMetadataFrame,
    STTMuteFrame,
    TranscriptionFrame,
    UserAudioRawFrame,
)
from pipecat.pipeline.worker import PipelineParams
from pipecat.tests.utils import run_test

from edge_asr.errors import ConfigError
from edge_asr.integrations.pipecat import EdgeAsrSTTService
from edge_asr.runtime import Recognizer

Speech = npt.NDArray[np.int16]
pytestmark = pytest.mark.filterwarnings("default")  # warnings of the framework are its own


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


def frames_of(speech: Speech, rate: int = 16_000, *, user: str | None = None) -> list[Frame]:
    """Frames of 20 ms, as transports send them."""
    n = rate // 50
    blocks = [speech[begin : begin + n].tobytes() for begin in range(0, len(speech), n)]
    if user is None:
        return [InputAudioRawFrame(block, rate, 1) for block in blocks]
    return [
        UserAudioRawFrame(audio=block, sample_rate=rate, num_channels=1, user_id=user) for block in blocks
    ]


def hear(
    service: EdgeAsrSTTService, frames: Sequence[Frame], rate: int = 16_000, **options: Any
) -> tuple[Sequence[Frame], Sequence[Frame]]:
    params = PipelineParams(audio_in_sample_rate=rate, enable_metrics=True)
    work = run_test(service, frames_to_send=frames, pipeline_params=params, start_timeout=60, **options)
    down, up = run(work)
    return down, up


def texts(frames: Sequence[Frame]) -> list[str]:
    return [frame.text for frame in frames if isinstance(frame, TranscriptionFrame)]


def test_a_pipeline_hears_what_the_runtime_hears(
    recognizer: Recognizer, speech: Speech, finals: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran_in: set[str] = set()
    run_model = recognizer.backend.log_probs

    def noting(*arguments: Any, **options: Any) -> Any:
        ran_in.add(threading.current_thread().name)
        return run_model(*arguments, **options)

    monkeypatch.setattr(recognizer.backend, "log_probs", noting)
    sent = frames_of(speech, user="ada")
    down, up = hear(EdgeAsrSTTService(recognizer), sent)
    assert texts(down) == finals
    final = next(frame for frame in down if isinstance(frame, TranscriptionFrame))
    assert (final.finalized, final.user_id, str(final.language)) == (True, "ada", "en")
    assert " ".join(word["text"] for word in final.result["words"]) == final.text
    interim = [frame for frame in down if isinstance(frame, InterimTranscriptionFrame)]
    assert interim
    assert interim[0].text in final.text or len(interim[0].text) < len(final.text)
    assert [frame for frame in down if isinstance(frame, InputAudioRawFrame)] == sent  # passed on
    (metadata,) = (frame for frame in down if isinstance(frame, STTMetadataFrame))
    assert metadata.ttfs_p99_latency == pytest.approx(0.35)
    assert not [frame for frame in up if isinstance(frame, ErrorFrame)]
    assert ran_in
    assert threading.current_thread().name not in ran_in


def test_another_rate_no_partials_and_a_longer_pause(recognizer: Recognizer, speech: Speech) -> None:
    service = EdgeAsrSTTService(recognizer, endpoint="dictation", partials=False)
    down, _ = hear(service, frames_of(np.repeat(speech, 3), 48_000), 48_000)
    said = "enter seven two five start recording go three meters and stop"
    assert SequenceMatcher(None, " ".join(texts(down)), said).ratio() > 0.85
    assert not [frame for frame in down if isinstance(frame, InterimTranscriptionFrame)]


def test_a_muted_service_hears_nothing(recognizer: Recognizer, speech: Speech) -> None:
    down, _ = hear(EdgeAsrSTTService(recognizer), [STTMuteFrame(mute=True), *frames_of(speech[:48_000])])
    assert not texts(down)


def test_a_pipeline_that_is_cancelled_leaves_no_thread(recognizer: Recognizer, speech: Speech) -> None:
    frames = [*frames_of(speech[:24_000]), CancelFrame()]
    hear(EdgeAsrSTTService(recognizer), frames, send_end_frame=False)


def test_a_service_that_cannot_load_says_so_and_lets_frames_pass(tmp_path: Path, speech: Speech) -> None:
    sent = frames_of(speech[:16_000])
    down, up = hear(EdgeAsrSTTService(tmp_path / "none"), sent)
    (error,) = (frame for frame in up if isinstance(frame, ErrorFrame))
    assert "none" in error.error
    assert not error.processor.is_usable
    assert [frame for frame in down if isinstance(frame, InputAudioRawFrame)] == sent


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="endpoint preset is 'never'; it must be one of"):
        EdgeAsrSTTService(endpoint="never")  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="language is 'Klingon'; give a code that Pipecat knows, such as en"
    ):
        EdgeAsrSTTService(language="Klingon")


def test_the_example(repository: Path, sample_path: Path) -> None:
    example = repository / "examples" / "integrations" / "pipecat_file.py"
    done = subprocess.run(
        [sys.executable, str(example), str(sample_path), "10"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    finals = [line for line in done.stdout.splitlines() if not line.startswith("...")]
    assert "enter" in finals[0]
    assert len(finals) >= 3
