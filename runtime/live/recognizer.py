"""Live recognition: an audio source in, events out, in a thread of its own.

Three threads never wait for each other: the driver's (copies and enqueues, in `microphone`), the
recognition thread (here: endpointing, partials, finals, recording) and the caller's, who iterates
over events or is called with them. A final is `Recognizer.transcribe` of exactly the samples
[segment_start, segment_end) of the stream, so a recording can always be checked against it.
What this file does not do: open devices (`microphone`), judge pauses (`endpointing`), print.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr.runtime.live.endpointing import Endpoint, EndpointConfig, Endpointer
from edge_asr.runtime.live.events import STREAM_SAMPLE_RATE, Error, Event, Final, FinalReason, Gap, Partial
from edge_asr.runtime.live.partials import (
    AudioHistory,
    Hypothesis,
    PartialDecoder,
    Transcriber,
    WindowedDecoder,
    shift_tokens,
)
from edge_asr.runtime.live.sources import AudioSource, Loss, Recorder

_STEP_SAMPLES = 320


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """How live recognition behaves.

    Attributes:
        endpoint: when utterances begin and end.
        partials: whether to show the utterance in progress.
        partial_interval_s: audio between two partials at least.
        partial_window_s: audio that a partial encodes at most.
        partial_load: share of the time that partials may take; on a slow machine they become rarer.
        max_audio_s: stop after exactly so much audio; None goes on until stopped.
    """

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    partials: bool = True
    partial_interval_s: float = 0.3
    partial_window_s: float = 8.0
    partial_load: float = 0.5
    max_audio_s: float | None = None

    def __post_init__(self) -> None:
        if not self.partial_interval_s > 0:
            raise ConfigError(f"partial_interval_s is {self.partial_interval_s}; it must be positive")
        if not 0 < self.partial_load <= 1:
            raise ConfigError(f"partial_load is {self.partial_load}; it must lie in (0, 1]")
        if self.max_audio_s is not None and not self.max_audio_s > 0:
            raise ConfigError(f"max_audio_s is {self.max_audio_s}; it must be positive, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStats:
    """What has happened so far.

    Attributes:
        audio_s: audio heard.
        n_finals, n_partials: events given.
        n_gaps: losses of audio; lost_s: their sum.
        n_overflows: those among them that the driver or our queue reported as an overflow.
        compute_s: wall time spent in the recogniser.
    """

    audio_s: float = 0.0
    n_finals: int = 0
    n_partials: int = 0
    n_gaps: int = 0
    lost_s: float = 0.0
    n_overflows: int = 0
    compute_s: float = 0.0


class LiveRecognizer:
    """Turns a source into events until it ends, `stop` is called or `max_audio_s` is reached.

        with LiveRecognizer(Recognizer.load(), MicrophoneSource()) as live:
            for event in live:
                ...

    Leaving the block stops, flushes the last words and waits. Without `on_event` the events wait in
    the iterator; with it they are given to that function in the recognition thread instead, and
    `join` waits for the end. An expected error (device gone, backend failed) is the last event, an
    `Error`, and stands in `error`; any other exception is a bug and is raised by the iterator and `join`.

    Args:
        recognizer: a loaded `Recognizer`.
        source: where the audio comes from; opened and closed here.
        config: None for the defaults.
        recorder: keeps the stream; closed here.
        on_event: called with each event.
        partial_decoder: None for `WindowedDecoder`.
    """

    def __init__(
        self,
        recognizer: Transcriber,
        source: AudioSource,
        *,
        config: LiveConfig | None = None,
        recorder: Recorder | None = None,
        on_event: Callable[[Event], None] | None = None,
        partial_decoder: PartialDecoder | None = None,
    ) -> None:
        self.config = config or LiveConfig()
        self.stats = LiveStats()
        self.error: EdgeAsrError | None = None
        self.hearing = threading.Event()
        """Set when the first audio has arrived, or listening has ended without any."""
        self._recognizer = recognizer
        self._source = source
        self._recorder = recorder
        self._decoder = partial_decoder or WindowedDecoder(recognizer, self.config.partial_window_s)
        self._on_event = on_event
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._bug: BaseException | None = None
        self._history = AudioHistory()
        self._endpointer = Endpointer(self.config.endpoint)
        self._earliest = 0
        self._utterance: _Utterance | None = None
        self._next_partial_at = 0.0
        self._thread = threading.Thread(target=self._run, name="edge-asr-live", daemon=True)

    def __enter__(self) -> LiveRecognizer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None:
            self.join()
        else:
            self._thread.join()

    def __iter__(self) -> Iterator[Event]:
        """Events as they happen, until listening has ended."""
        if self._on_event is not None:
            raise ConfigError("events go to on_event; leave it out to iterate over them")
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)  # another iteration ends at once
        self.join()

    def start(self) -> None:
        """Begin to listen; at once, without waiting for the device."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, from any thread; what was heard is still recognised. Does not wait."""
        self._source.stop()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it has come."""
        self._thread.join(timeout_s)
        if self._bug is not None:
            raise self._bug
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            try:
                with self._source:
                    self._listen()
            except EdgeAsrError as error:
                self.error = error
            try:
                self._end_utterance(self._history.end, "end")
            except EdgeAsrError as error:
                self.error = self.error or error
            if self.error is not None:
                at_s = self._history.end / STREAM_SAMPLE_RATE
                self._emit(Error(message=str(self.error), kind=type(self.error).__name__, at_s=at_s))
        except BaseException as bug:  # noqa: BLE001 - raised again in the caller's thread by join
            self._bug = bug
        finally:
            if self._recorder is not None:
                self._recorder.close()
            self.hearing.set()
            self._events.put(None)

    def _listen(self) -> None:
        limit_s = self.config.max_audio_s
        limit = None if limit_s is None else round(limit_s * STREAM_SAMPLE_RATE)
        while (block := self._source.read()) is not None:
            self.hearing.set()
            for loss in block.losses:
                self._lose(loss)
            samples = block.samples
            if limit is not None:
                samples = samples[: limit - self._history.end]
            if self._recorder is not None:
                self._recorder.write(samples)
            for start in range(0, len(samples), _STEP_SAMPLES):
                self._hear(samples[start : start + _STEP_SAMPLES])
            if limit is not None and self._history.end >= limit:
                break

    def _lose(self, loss: Loss) -> None:
        now = self._history.end
        self._end_utterance(now, "gap")
        self._earliest = now
        self.stats = replace(
            self.stats,
            n_gaps=self.stats.n_gaps + 1,
            lost_s=self.stats.lost_s + loss.lost_s,
            n_overflows=self.stats.n_overflows + (loss.reason != "missing"),
        )
        at_s = now / STREAM_SAMPLE_RATE
        self._emit(Gap(at_s=at_s, lost_s=loss.lost_s, reason=loss.reason, estimated=loss.estimated))

    def _hear(self, samples: npt.NDArray[np.float32]) -> None:
        self._history.append(samples)
        self._endpointer.push(samples)
        now = self._history.end
        self.stats = replace(self.stats, audio_s=now / STREAM_SAMPLE_RATE)
        if self._utterance is None:
            start = self._endpointer.onset(max(self._earliest, self._history.start))
            if start is None:
                # Twice the longest way back to an onset.
                kept_s = 2 * (self.config.endpoint.pre_roll_s + self.config.endpoint.pause_s)
                self._history.discard_before(now - round(kept_s * STREAM_SAMPLE_RATE))
                return
            self._begin_utterance(start)
        self._follow(now)

    def _follow(self, now: int) -> None:
        utterance = self._utterance
        assert utterance is not None
        if self._partial_is_due(now, utterance):
            self._decode(utterance)
        endpoint = self._ask_endpoint(now, utterance)
        if endpoint is not None and utterance.hypothesis.end < now:
            self._decode(utterance)
            endpoint = self._ask_endpoint(now, utterance)
        if endpoint is None:
            return
        if endpoint.reason == "no_words":
            self._drop_utterance(now)
        elif endpoint.reason == "pause":
            self._end_utterance(endpoint.sample, "pause", endpoint.speech_end)
        else:
            cut = self._endpointer.cut(utterance.hypothesis.word_gaps(), now)
            self._end_utterance(cut, "max_length", cut)
            self._begin_utterance(cut)

    def _ask_endpoint(self, now: int, utterance: _Utterance) -> Endpoint | None:
        return self._endpointer.endpoint(utterance.start, now, utterance.hypothesis.last_token_end)

    def _begin_utterance(self, start: int) -> None:
        self._utterance = _Utterance(start, Hypothesis((), start))
        self._decoder.begin(start)

    def _partial_is_due(self, now: int, utterance: _Utterance) -> bool:
        new_s = (now - utterance.hypothesis.end) / STREAM_SAMPLE_RATE
        return (
            self.config.partials
            and new_s >= self.config.partial_interval_s
            and time.monotonic() >= self._next_partial_at
        )

    def _decode(self, utterance: _Utterance) -> None:
        began = time.monotonic()
        utterance.hypothesis = self._decoder.decode(self._history)
        ended = time.monotonic()
        self.stats = replace(self.stats, compute_s=self.stats.compute_s + ended - began)
        self._next_partial_at = ended + (ended - began) * (1 / self.config.partial_load - 1)
        if self.config.partials and utterance.hypothesis.text:
            self._show(utterance, utterance.hypothesis.text)

    def _show(self, utterance: _Utterance, text: str) -> None:
        if text == utterance.shown:
            return
        utterance.shown = text
        self.stats = replace(self.stats, n_partials=self.stats.n_partials + 1)
        self._emit(
            Partial(
                id=self.stats.n_finals,
                text=text,
                start_s=utterance.start / STREAM_SAMPLE_RATE,
                end_s=self._history.end / STREAM_SAMPLE_RATE,
            )
        )

    def _drop_utterance(self, now: int) -> None:
        """Sound without words: nothing to tell, and what may be the next word's onset is kept."""
        assert self._utterance is not None
        self._show(self._utterance, "")
        self._utterance = None
        pre_roll = round(self.config.endpoint.pre_roll_s * STREAM_SAMPLE_RATE)
        self._earliest = max(self._earliest, now - pre_roll)

    def _end_utterance(self, end: int, reason: FinalReason, speech_end: int | None = None) -> None:
        utterance, self._utterance = self._utterance, None
        if utterance is None:
            return
        began = time.monotonic()
        segment = self._history.read(utterance.start, end)
        transcript = self._recognizer.transcribe(segment, STREAM_SAMPLE_RATE)
        compute_s = time.monotonic() - began
        self.stats = replace(self.stats, compute_s=self.stats.compute_s + compute_s)
        self._earliest = end
        if not transcript.text:
            self._show(utterance, "")
            return
        offset_s = utterance.start / STREAM_SAMPLE_RATE
        waited = 0 if speech_end is None else self._history.end - speech_end
        final = Final(
            id=self.stats.n_finals,
            text=transcript.text,
            start_s=transcript.words[0].start_s + offset_s,
            end_s=transcript.words[-1].end_s + offset_s,
            tokens=shift_tokens(transcript.tokens, utterance.start),
            words=tuple(
                replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)
                for word in transcript.words
            ),
            segment_start_samples=utterance.start,
            segment_end_samples=end,
            reason=reason,
            endpoint_wait_s=waited / STREAM_SAMPLE_RATE,
            compute_s=compute_s,
        )
        self.stats = replace(self.stats, n_finals=self.stats.n_finals + 1)
        self._emit(final)

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        else:
            self._events.put(event)


@dataclass(slots=True)
class _Utterance:
    """The utterance in progress: where it began, what it sounds like, what was shown of it."""

    start: int
    hypothesis: Hypothesis
    shown: str = ""
