"""edge-asr and sherpa-onnx on live speech, behind two calls: as fast as possible, and at real-time pace.

Each runs in the calling process on one thread. Compute is the processor's time; latencies are on the clock,
from the true place of a word in the sound. What this file does not do: choose clips, compare, print.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE as RATE
from edge_asr.benchmark.paced_source import BLOCK_S, PacedSource
from edge_asr.benchmark.timing import lap
from edge_asr.errors import require
from edge_asr.metrics import find_right_words
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.endpointing import EndpointConfig
from edge_asr.runtime.live.events import Event, Final, Partial
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import AudioBlock
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.live.streaming_decoder import StreamingDecoder
from edge_asr.runtime.recognizer import Recognizer

F32Array = npt.NDArray[np.float32]

BLOCK_SAMPLES = round(BLOCK_S * RATE)
FINAL_TAIL_S = 0.3
"""Silence behind the speech of a final, as in `EndpointConfig.tail_s`."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Speech between faint noise.

    Attributes:
        samples: f32 [S] at 16 kHz.
        text: what is said.
        begin_s, end_s: of all speech, by the words that were found.
        word_ends: of each word of the text, seconds; None for one that was not found.
    """

    samples: F32Array
    text: str
    begin_s: float
    end_s: float
    word_ends: tuple[float | None, ...]


@dataclass(slots=True)
class Heard:
    """What a contender made of one clip, as fast as it could or at real-time pace.

    Attributes:
        seconds: by measure.
        word_s: by place in the text, from the end of a word to the first partial that has it right.
        partials: texts, in order.
        text: all of the finals.
        cpu_s, wall_s: of the process.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    word_s: dict[int, float] = field(default_factory=dict)
    partials: list[str] = field(default_factory=list)
    text: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def note(self, measure: str, seconds: float) -> None:
        """Add a measured time."""
        self.seconds.setdefault(measure, []).append(seconds)


@dataclass(slots=True)
class _Shown:
    """What a user saw.

    Attributes:
        partials: (monotonic time, all text of the clip so far).
        finals: their texts.
        final_at: monotonic time of the last final, its compute on the clock and of the processor.
    """

    partials: list[tuple[float, str]] = field(default_factory=list)
    finals: list[str] = field(default_factory=list)
    final_at: tuple[float, float, float] | None = None

    def show_partial(self, text: str) -> None:
        self.partials.append((time.monotonic(), " ".join([*self.finals, text]).strip()))

    def show_final(self, text: str, wall_s: float, thread_s: float) -> None:
        self.finals.append(text)
        self.final_at = (time.monotonic(), wall_s, thread_s)


class Contender(Protocol):
    """Something that recognizes live speech."""

    name: str

    def follow(self, clip: Clip, step: int) -> Heard:
        """Take a clip in blocks of `step` samples, as fast as they go."""
        ...

    def listen(self, clip: Clip) -> Heard:
        """Hear a clip at real-time pace, in blocks of 20 ms."""
        ...


class EdgeAsr:
    """Our runtime on a recognizer with a streaming graph."""

    name = "edge-asr"

    def __init__(self, recognizer: Recognizer, pause_s: float, partial_interval_s: float) -> None:
        self._recognizer = recognizer
        self._model = recognizer.streaming_model()
        self._config = LiveConfig(
            endpoint=EndpointConfig(pause_s=pause_s), partial_interval_s=partial_interval_s
        )

    def follow(self, clip: Clip, step: int) -> Heard:
        """Take a clip; "chunk" is the steps that a block completes, "update" a partial of `listen`."""
        heard, recognizer = Heard(), self._recognizer
        features, state = FeatureExtractor(recognizer.features).stream(), self._model.start()
        steps, history, updates = recognizer.new_decoder(), AudioHistory(), self._new_decoder()

        def push(block: F32Array) -> None:
            steps.push(self._model.push(state, features.push(block)))
            recognizer.vocabulary.decode(steps.fork().flush().tokens.ids.tolist())

        for block in cut(clip.samples, step):
            heard.note("chunk", _processor_s(partial(push, block)))
        interval = round(self._config.partial_interval_s * RATE)
        for block in cut(clip.samples, BLOCK_SAMPLES):
            history.append(block)
            began = time.process_time()
            hypothesis = updates.follow(history, interval)
            if hypothesis is not None:
                heard.partials.append(hypothesis.settled_text)
                heard.note("update", time.process_time() - began)
        samples = clip.samples[: round((clip.end_s + FINAL_TAIL_S) * RATE)]
        heard.note("final", _processor_s(lambda: recognizer.transcribe(samples, RATE)))
        heard.text = recognizer.transcribe(samples, RATE).text
        return heard

    def listen(self, clip: Clip) -> Heard:
        """Hear a clip through `LiveRecognizer`."""
        shown, source = _Shown(), _TimedSource(clip.samples)

        def note(event: Event) -> None:
            if isinstance(event, Final):  # in the thread that read the sound
                shown.show_final(event.text, time.monotonic() - source.read_at, source.busy_s())
            elif isinstance(event, Partial):
                shown.show_partial(event.text)

        live = LiveRecognizer(
            self._recognizer, source, config=self._config, on_event=note, partial_decoder=self._new_decoder()
        )

        def run() -> None:
            live.start()
            live.join()

        heard = _timed(run)
        if live.error is not None:
            raise live.error
        return _measure_latencies(heard, shown, clip, source)

    def _new_decoder(self) -> StreamingDecoder:
        return StreamingDecoder(
            self._model,
            self._recognizer.features,
            self._recognizer.vocabulary,
            self._recognizer.new_decoder(),
        )


class _TimedSource(PacedSource):
    """Knows when its last block was read."""

    read_at = began = 0.0

    def read(self) -> AudioBlock | None:
        block = super().read()
        self.read_at, self.began = time.monotonic(), time.thread_time()
        return block

    def busy_s(self) -> float:
        """Processor's time of this thread since then."""
        return time.thread_time() - self.began


class SherpaOnnx:
    """sherpa-onnx's online recognizer on one file."""

    def __init__(self, name: str, model: Path, tokens: Path, pause_s: float) -> None:
        self.name = name
        self._recognizer = require("sherpa_onnx", extra="dev").OnlineRecognizer.from_nemo_ctc(
            model=str(model),
            tokens=str(tokens),
            num_threads=1,
            enable_endpoint_detection=True,
            rule1_min_trailing_silence=60.0,
            rule2_min_trailing_silence=pause_s,
            rule3_min_utterance_length=60.0,
        )

    def follow(self, clip: Clip, step: int) -> Heard:
        """Take a clip; its final is there with the last chunk, which therefore is what it costs."""
        heard, stream = Heard(), self._recognizer.create_stream()
        for block in cut(clip.samples, step):
            ran: list[bool] = []
            seconds = _processor_s(lambda block=block, ran=ran: ran.append(self._push(stream, block)))  # type: ignore[misc]
            heard.note("chunk", seconds)
            heard.note("update", seconds)
            if ran[0]:
                heard.seconds["final"] = [seconds]
            heard.partials.append(self._recognizer.get_result(stream))
        stream.input_finished()
        self._push(stream, np.zeros(0, np.float32))
        heard.text = self._recognizer.get_result(stream)
        return heard

    def listen(self, clip: Clip) -> Heard:
        """Hear a clip, and ask for text and end point after each block."""
        shown, source, stream = _Shown(), PacedSource(clip.samples), self._recognizer.create_stream()

        def run() -> None:
            last = ""
            with source:
                while (block := source.read()) is not None:
                    took = lap(partial(self._push, stream, block.samples))
                    text = self._recognizer.get_result(stream)
                    if text != last:
                        shown.show_partial(text)
                    last = text
                    if self._recognizer.is_endpoint(stream):
                        if text:
                            shown.show_final(text, took.wall_s, took.thread_s)
                        self._recognizer.reset(stream)
                        last = ""
                if last:
                    shown.show_final(last, 0.0, 0.0)

        return _measure_latencies(_timed(run), shown, clip, source)

    def _push(self, stream: Any, block: F32Array) -> bool:
        """Push sound, run what is ready, and tell whether anything was."""
        ran = False
        if len(block):
            stream.accept_waveform(RATE, block)
        while self._recognizer.is_ready(stream):
            self._recognizer.decode_stream(stream)
            ran = True
        self._recognizer.get_result(stream)
        return ran


def _processor_s(call: Callable[[], object]) -> float:
    """Processor seconds of a call, of all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def _timed(run: Callable[[], None]) -> Heard:
    """Run, and note the time of process and clock."""
    began, began_busy = time.monotonic(), time.process_time()
    run()
    return Heard(cpu_s=time.process_time() - began_busy, wall_s=time.monotonic() - began)


def cut(samples: F32Array, step: int) -> Iterator[F32Array]:
    """Cut into blocks of `step` samples."""
    return (samples[begin : begin + step] for begin in range(0, len(samples), step))


def _measure_latencies(heard: Heard, shown: _Shown, clip: Clip, source: PacedSource) -> Heard:
    """Add the latencies of a clip; a word that no partial has right has no delay."""
    began, words = source.spoken_at(0), clip.text.split()
    for at, text in filter(lambda shown: shown[1], shown.partials):
        if "first partial" not in heard.seconds:
            heard.note("first partial", at - began - clip.begin_s)
        # The words of the reference that are in the text.
        for place, is_there in enumerate(find_right_words(text, words)):
            end_s = clip.word_ends[place]
            if is_there and end_s is not None:
                heard.word_s.setdefault(place, at - began - end_s)
    if shown.final_at is not None:
        at, wall_s, thread_s = shown.final_at
        if at - began < len(clip.samples) / RATE:  # one of a pause, not of the end of the clip
            heard.note("end to final", at - began - clip.end_s)
            heard.note("wait", at - began - clip.end_s - wall_s)
            heard.note("final, live", thread_s)
    heard.text = " ".join(shown.finals)
    return heard
