"""What the tests of all integrations share: the model, and what it hears without any framework."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.audio import read_audio
from edge_asr.runtime import EndpointConfig, FileSource, Final, LiveConfig, LiveRecognizer, Recognizer


@pytest.fixture(scope="session")
def recognizer() -> Iterator[Recognizer]:
    with Recognizer.load("tiny-en", num_threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every thread of a stream ends with it."""
    yield
    end = time.monotonic() + 20
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("edge-asr-li")]:
        assert time.monotonic() < end, f"these threads have not ended: {left}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def speech(sample_path: Path) -> npt.NDArray[np.int16]:
    """7.8 s at 16 kHz, with half a second of silence behind it."""
    samples = (read_audio(sample_path) * 32767).astype(np.int16)
    return np.concatenate([samples, np.zeros(8000, np.int16)])


@pytest.fixture(scope="session")
def finals(recognizer: Recognizer, speech: npt.NDArray[np.int16]) -> list[str]:
    """What is heard in `speech` with the ends of utterances that an agent wants."""
    config = LiveConfig(endpoint=EndpointConfig.preset("agent"))
    source = FileSource(speech, sample_rate=16_000, pace=0)
    with LiveRecognizer(recognizer, source, config=config) as live:
        found = [event.text for event in live if isinstance(event, Final)]
    assert len(found) >= 3
    return found
