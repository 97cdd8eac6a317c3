"""The core without a protocol: places, slow readers, failures, stopping, decoders, turns, the outbox."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_clients import Speech, is_near, run, until

from edge_asr.errors import BackendError, ConfigError, GrammarError, RefusedError
from edge_asr.runtime import (
    Error,
    FileSource,
    Final,
    Gap,
    LiveRecognizer,
    Partial,
    QueueSource,
    Recognizer,
    StreamingDecoder,
)
from edge_asr.runtime.live.events import Event
from edge_asr.serving import recognizers
from edge_asr.serving.limits import Limits
from edge_asr.serving.observer import Observer
from edge_asr.serving.options import DecodingOptions, SessionOptions
from edge_asr.serving.outbox import Outbox
from edge_asr.serving.session import MAX_QUEUE_BYTES, Session
from edge_asr.serving.sessions import Place, Sessions
from edge_asr.serving.turns import Turns


@asynccontextmanager
async def core_of(recognizer: Any, **limits: Any) -> AsyncIterator[Sessions]:
    core = Sessions(recognizer, name="tiny-en", limits=Limits(**limits))
    try:
        yield core
    finally:
        core.close()


async def hear(place: Place, samples: Speech, options: SessionOptions) -> tuple[list[Event], str]:
    """The events of one session, and why it ended."""
    events: list[Event] = []

    async def keep(event: Event) -> None:
        events.append(event)

    session = await place.open(options)
    delivering = asyncio.ensure_future(session.deliver(keep))
    await session.push(samples)
    session.end()
    return events, await delivering


def test_a_place_has_one_session_after_the_other(recognizer: Recognizer, speech: Speech) -> None:
    async def work() -> None:
        async with core_of(recognizer, max_sessions=1) as core:
            with core.place() as place:
                for _ in range(2):
                    events, reason = await hear(place, speech[:48_000], SessionOptions(partials=False))
                    assert [event.text for event in events if isinstance(event, Final)] == [
                        "enter seven two five"
                    ]
                    assert reason == "end"
                with (
                    pytest.raises(RefusedError, match="all 1 places for sessions are taken") as refusal,
                    core.place(),
                ):
                    pass
                assert refusal.value.reason == "busy"
            assert core.n_sessions == 0

    run(work())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PyTorch, when all that it holds is looked at
def test_a_session_is_gone_without_the_garbage_collector(recognizer: Recognizer, speech: Speech) -> None:
    """A server makes so little garbage that it is collected seldom, and a session holds seconds of sound."""

    def count() -> int:
        return sum(isinstance(thing, LiveRecognizer | QueueSource | Session) for thing in gc.get_objects())

    async def one(core: Sessions) -> None:
        with core.place() as place:
            await hear(place, speech[:24_000], SessionOptions())

    async def work() -> None:
        async with core_of(recognizer) as core:
            gc.collect()
            before = count()
            gc.disable()
            try:
                for _ in range(3):
                    await one(core)
                await until(lambda: count() <= before)
            finally:
                gc.enable()

    run(work())


def test_a_reader_that_takes_nothing_is_cut_off(recognizer: Recognizer, speech: Speech) -> None:
    async def never(event: Event) -> None:
        await asyncio.sleep(60)

    async def work() -> None:
        async with core_of(recognizer, slow_reader_s=0.2) as core:
            with core.place() as place:
                session = await place.open(SessionOptions())
                await session.push(speech)
                with pytest.raises(RefusedError, match=r"did not read its events for 0\.2 s"):
                    await session.deliver(never)
                assert session.reason == "slow_reader"
            await until(lambda: core.n_sessions == 0)

    run(work())


def test_sessions_of_a_streaming_bundle_share_its_steps(streaming_bundle: Path, speech: Speech) -> None:
    """Random weights, but what a session hears must not depend on who else is heard."""
    with Recognizer.load(streaming_bundle, num_threads=1) as loaded:
        with LiveRecognizer(loaded, FileSource(speech, sample_rate=16_000, pace=0)) as live:
            alone = [event.text for event in live if isinstance(event, Final)]

        async def one(core: Sessions) -> list[str]:
            with core.place() as place:
                events, _ = await hear(place, speech, SessionOptions())
            return [event.text for event in events if isinstance(event, Final)]

        async def work() -> None:
            async with core_of(loaded) as core:
                loaded.streaming_model().observe_steps(lambda seconds, rows: steps.append((seconds, rows)))
                assert isinstance(
                    core.recognizers.new_partial_decoder(DecodingOptions(), 8.0), StreamingDecoder
                )
                assert await asyncio.gather(*(one(core) for _ in range(4))) == [alone] * 4

        steps: list[tuple[float, int]] = []
        run(work())
        assert all(seconds > 0 and 1 <= rows <= 4 for seconds, rows in steps)
        assert len(steps) >= 4 * 4


class Failing:
    """A backend that fails as it is told."""

    name, precision, num_threads, max_frames = "cpu", "fp32", 1, None

    def __init__(self, error: Exception) -> None:
        self.error = error

    def log_probs(self, features: Any, feature_lens: Any) -> Any:
        raise self.error

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BackendError("the device is gone; restart it"), "BackendError", "the device is gone; restart it"),
        (
            ZeroDivisionError("a bug"),
            "InternalError",
            "recognition failed inside the server; its log says why",
        ),
    ],
)
def test_a_failure_ends_its_session_alone(
    recognizer: Recognizer, speech: Speech, error: Exception, kind: str, message: str
) -> None:
    failing = Recognizer(
        Failing(error),
        features=recognizer.features,
        vocabulary=recognizer.vocabulary,
        subsampling_factor=recognizer.subsampling_factor,
    )

    async def work() -> None:
        async with core_of(failing) as core:
            for _ in range(2):
                with core.place() as place:
                    events, reason = await hear(place, speech, SessionOptions())
                    last = events[-1]
                    assert isinstance(last, Error)
                    assert last.kind == kind
                    assert last.message.startswith(message)
                    assert reason in ("error", "end")
            await until(lambda: core.n_sessions == 0)

    run(work())


def test_stopping(recognizer: Recognizer, speech: Speech, sample_path: Path) -> None:
    async def work() -> None:
        async with core_of(recognizer) as core:
            with core.place(), core.place() as place:
                heard = asyncio.ensure_future(hear_until_stopped(place))
                await asyncio.sleep(0.3)
                draining = asyncio.ensure_future(core.drain(5.0))
                events, reason = await heard
                assert isinstance(events[-1], Final)
                assert reason == "draining"
                for refused in (core.place, core.request):
                    with pytest.raises(RefusedError, match="the server is stopping"), refused():
                        pass
                with pytest.raises(RefusedError, match="the server is stopping"):
                    await place.open(SessionOptions())
            assert await draining

    async def hear_until_stopped(place: Place) -> tuple[list[Event], str]:
        events: list[Event] = []

        async def keep(event: Event) -> None:
            events.append(event)

        session = await place.open(SessionOptions())
        await session.push(speech[:32_000])
        return events, await session.deliver(keep)

    run(work())

    async def cut_off() -> None:
        async with core_of(recognizer) as core:
            with core.place() as place, core.request():
                await place.open(SessionOptions())  # nobody takes its events
                assert not await core.drain(0.1)
                with pytest.raises(RefusedError, match="the server is stopping"):
                    await core.transcribe(io.BytesIO(sample_path.read_bytes()), DecodingOptions())

    run(cut_off())


def test_a_decoder_is_made_once(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, sample_path: Path
) -> None:
    made: list[str] = []
    compile_graph = recognizers.compile_graph

    def counting(*args: Any, **kwargs: Any) -> Any:
        made.append("grammar")
        time.sleep(0.1)
        return compile_graph(*args, **kwargs)

    monkeypatch.setattr(recognizers, "compile_graph", counting)

    async def work() -> None:
        async with core_of(recognizer) as core:
            asked = DecodingOptions(
                grammar="enter {n 0..9} {m 0..9} {k 0..9}\nstart recording", grammar_mode="spot"
            )
            content = sample_path.read_bytes()
            found = await asyncio.gather(*(core.transcribe(io.BytesIO(content), asked) for _ in range(3)))
            assert {transcript.grammar.matched for transcript in found if transcript.grammar} == {True}
            assert made == ["grammar"]
            bad = DecodingOptions(grammar="start (")
            for _ in range(2):
                with pytest.raises(GrammarError, match="line 1"):
                    await core.transcribe(io.BytesIO(content), bad)

    run(work())


def test_the_language_model_of_the_bundle(recognizer: Recognizer, sample_path: Path) -> None:
    content = sample_path.read_bytes()

    async def work() -> None:
        async with core_of(recognizer) as core:
            for asked in (True, False, None):
                options = DecodingOptions(language_model=asked)
                transcript = await core.transcribe(io.BytesIO(content), options)
                assert is_near(
                    transcript.text, "enter seven two five start recording go three meters and stop"
                )
        bare = Recognizer(
            recognizer.backend,
            features=recognizer.features,
            vocabulary=recognizer.vocabulary,
            subsampling_factor=recognizer.subsampling_factor,
        )
        async with core_of(bare) as core:
            with pytest.raises(ConfigError, match="the bundle has no language model"):
                await core.transcribe(io.BytesIO(content), DecodingOptions(language_model=True))

    run(work())


def test_observers_see_everything(recognizer: Recognizer, speech: Speech) -> None:
    seen: list[str] = []

    class Watching(Observer):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                seen.append(name)
            return super().__getattribute__(name)

    async def work() -> None:
        core = Sessions(recognizer, name="tiny-en", observer=Watching())
        try:
            with core.place() as place:
                await hear(place, speech, SessionOptions())
        finally:
            core.close()

    run(work())
    assert {"session_opened", "session_closed", "event", "model_ran"} <= set(seen)


def test_sound_that_waits_is_bounded_in_bytes(recognizer: Recognizer) -> None:
    silence = np.broadcast_to(np.float32(0), (192_000 * 20, 8))  # 123 MB, more than anything hears in no time
    options = SessionOptions(sample_rate=192_000, channels=8, format="f32le", overflow="drop", partials=False)

    async def work() -> list[Event]:
        events: list[Event] = []

        async def keep(event: Event) -> None:
            events.append(event)

        async with core_of(recognizer) as core:
            with core.place() as place:
                session = await place.open(options)
                await session.push(silence)
                assert session._source.queued_s * 192_000 * options.frame_bytes <= MAX_QUEUE_BYTES
                session.end()
                assert await session.deliver(keep) == "end"
        return events

    lost_s = sum(event.lost_s for event in run(work()) if isinstance(event, Gap))
    assert lost_s > 10  # with a queue of 10 s it could be less


@pytest.mark.parametrize("name", ["max_sessions", "idle_s", "queue_s"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; give a positive number"):
        Limits(**{name: 0})


def partial(number: int, text: str) -> Partial:
    return Partial(id=number, text=text, start_s=0.0, end_s=1.0)


def gap() -> Gap:
    return Gap(at_s=0.0, lost_s=1.0, reason="missing", estimated=True)


def test_the_outbox_replaces_partials_and_keeps_the_rest() -> None:
    async def work(events: list[Event]) -> tuple[list[Any], int]:
        outbox = Outbox(asyncio.get_running_loop())
        writer = threading.Thread(target=lambda: [*map(outbox.put, events), outbox.close()])
        writer.start()
        writer.join()
        found = []
        while (event := await outbox.get()) is not None:
            found.append(event)
        assert await outbox.get() is None
        return found, outbox.n_dropped

    final = Error(message="stands for a final", kind="x", at_s=0.0)
    found, n_dropped = run(
        work([partial(0, "a"), partial(0, "a b"), gap(), partial(1, "c"), partial(1, "d"), final])
    )
    assert found == [partial(0, "a b"), gap(), partial(1, "d"), final]
    assert n_dropped == 2
    assert run(work([partial(0, "a"), partial(1, "b")])) == ([partial(0, "a"), partial(1, "b")], 0)


def test_the_outbox_wakes_its_reader() -> None:
    async def work() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        waiting: list[Awaitable[Any]] = [asyncio.ensure_future(outbox.get())]
        await asyncio.sleep(0.05)
        threading.Thread(target=outbox.put, args=(gap(),)).start()
        assert await waiting[0] == gap()

    run(work())


def test_turns_go_to_the_most_urgent_then_to_the_first() -> None:
    turns, order, holding = Turns(1), list[str](), threading.Event()

    def take(urgency: int, name: str) -> Callable[[], None]:
        def work() -> None:
            with turns.take(urgency):
                order.append(name)

        return work

    threads = []
    with turns.take(0):
        for urgency, name in ((2, "file"), (1, "partial"), (0, "final"), (1, "second partial")):
            threads.append(threading.Thread(target=take(urgency, name)))
            threads[-1].start()
            end = time.monotonic() + 5
            while len(turns._waiting) < len(threads) and time.monotonic() < end:
                time.sleep(0.005)
    for thread in threads:
        thread.join(5)
    assert order == ["final", "partial", "second partial", "file"]
    with turns.take(0):
        holding.set()
    assert holding.is_set()
    with pytest.raises(ConfigError, match="n_places is 0"):
        Turns(0)


def test_places_are_given_back_after_a_failure() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="failed"), turns.take(0):
            raise ValueError("failed")
    with turns.take(0):
        pass


def test_samples_of_a_block() -> None:
    stereo = SessionOptions(format="f32le", channels=2)
    block = np.array([[0.5, -0.5], [1.0, 0.0]], np.float32)
    assert np.array_equal(stereo.samples_from_bytes(block.tobytes()), block)
    with pytest.raises(Exception, match="a block has 12 bytes; send whole samples, a multiple of 8 bytes"):
        stereo.samples_from_bytes(bytes(12))
