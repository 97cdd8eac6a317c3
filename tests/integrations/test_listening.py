"""Live recognition from asyncio, without a framework."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.errors import AudioError, BundleError
from edge_asr.integrations.listening import Listening, Model
from edge_asr.runtime import EndpointConfig, Final, LiveConfig, Partial, Recognizer

Speech = npt.NDArray[np.int16]
AGENT = LiveConfig(endpoint=EndpointConfig.preset("agent"))


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, 60)

    return asyncio.run(bounded())


async def hear(model: Model, speech: Speech, rate: int = 16_000) -> list[Any]:
    listening = Listening(model, sample_rate=rate, config=AGENT)
    for begin in range(0, len(speech), 1600):
        block = speech[begin : begin + 1600]
        listening.push(block.tobytes(), channels=1 if block.ndim == 1 else block.shape[1])
    listening.end()
    events = [event async for event in listening]
    await listening.close()
    return events


def texts(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Final)]


def test_it_hears_what_the_runtime_hears(recognizer: Recognizer, speech: Speech, finals: list[str]) -> None:
    events = run(hear(Model(recognizer), speech))
    assert texts(events) == finals
    assert any(isinstance(event, Partial) for event in events)


def test_streams_side_by_side_share_a_model(
    recognizer: Recognizer, speech: Speech, finals: list[str]
) -> None:
    model = Model(recognizer)
    stereo = np.repeat(np.stack([speech, speech], axis=1), 2, axis=0)

    async def work() -> list[list[Any]]:
        return await asyncio.gather(hear(model, speech), hear(model, stereo, 32_000), hear(model, speech))

    first, resampled, last = map(texts, run(work()))
    assert first == last == finals
    assert len(resampled) == len(finals)


def test_close_in_mid_utterance_leaves_no_thread(recognizer: Recognizer, speech: Speech) -> None:
    async def work() -> None:
        listening = Listening(Model(recognizer), sample_rate=16_000)
        listening.push(speech[:24_000].tobytes() + b"\0")  # half a sample is left out
        await listening.close()
        listening.push(speech.tobytes())  # ignored

    run(work())


def test_a_model_is_loaded_when_needed_and_closed_by_whom_it_was_loaded(recognizer: Recognizer) -> None:
    model = Model("tiny-en")
    assert model.name == "tiny-en"
    loaded = model.load()
    assert model.load() is loaded
    model.close()
    given = Model(recognizer)
    assert given.name == "tiny-en"
    given.close()
    assert given.load() is recognizer  # and still open
    assert recognizer.transcribe(np.zeros(16_000, np.float32), 16_000).text == ""


def test_what_cannot_be(tmp_path: Path, recognizer: Recognizer) -> None:
    async def listen() -> None:
        async for _ in Listening(Model(tmp_path / "none"), sample_rate=16_000):
            pass

    with pytest.raises(BundleError):
        run(listen())

    async def make() -> None:
        Listening(Model(recognizer), sample_rate=12)

    with pytest.raises(AudioError, match="the sample rate is 12"):
        run(make())
