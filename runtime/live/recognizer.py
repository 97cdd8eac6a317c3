"""Live recognition: an audio source in, events out, in a thread of its own.

Three threads never wait for each other: that of the driver (copies and enqueues, in microphone.py), the
recognition thread (here: endpointing, partials, finals, recording), and that of the caller, who iterates over
events or is called with them. A final is `Recognizer.transcribe` of exactly the samples [segment_start,
segment_end) of the stream, so a recording can always be checked against it. The state of a stream belongs to
the recognition thread alone, which is why this file is long.
What this file does not do: open devices (microphone.py), detect pauses (endpointing.py), print.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE, mono_from_waveform
from edge_asr.errors import ConfigError, DeviceError, EdgeAsrError
from edge_asr.runtime.live.endpointing import Endpoint, EndpointConfig, Endpointer
from edge_asr.runtime.live.events import (
    DeviceChange,
    Error,
    Event,
    Final,
    FinalReason,
    Gap,
    Partial,
    Unmatched,
)
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialDecoder, PartialHypothesis, Transcriber, WindowedDecoder
from edge_asr.runtime.live.sources import AudioBlock, AudioSource, Loss, Recorder, SourceChange
from edge_asr.runtime.live.streaming_decoder import Partials, streaming_decoders
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import shift_grammar_result, shift_tokens

_Result = TypeVar("_Result")

_STEP_SAMPLES = 320
_STOP_ANSWERS_S = 10.0
"""How long a stopped source may take in all to give what it has; after that it is abandoned."""
_STOP_AUDIO_S = 120.0
"""How much sound a stopped source may still give, more than any queue holds; after that it is abandoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """How live recognition behaves.

    Attributes:
        endpoint: when utterances begin and end.
        partials: whether to show the utterance in progress.
        partial_interval_s: least audio between two partials.
        partial_window_s: most audio that a partial encodes.
        partial_load: share of the time that partials may take; on a slow machine they become rarer.
        max_audio_s: stop after exactly this much audio; None continues until stopped.
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
        if self.max_audio_s is not None and not 0 < self.max_audio_s < float("inf"):
            raise ConfigError(
                f"max_audio_s is {self.max_audio_s}; give a positive number of seconds, or None for no end"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStats:
    """What has happened so far.

    Attributes:
        audio_s: audio heard.
        n_finals, n_partials, n_unmatched: events given.
        n_gaps: losses of audio; lost_s: their sum.
        n_overflows: how many of them the driver or our queue reported as an overflow.
        compute_s: wall time spent in the recognizer.
    """

    audio_s: float = 0.0
    n_finals: int = 0
    n_partials: int = 0
    n_unmatched: int = 0
    n_gaps: int = 0
    lost_s: float = 0.0
    n_overflows: int = 0
    compute_s: float = 0.0


class LiveRecognizer:
    """Turns a source into events until it ends, `stop` is called or `max_audio_s` is reached.

        with LiveRecognizer(Recognizer.load(), MicrophoneSource()) as live:
            for event in live:
                ...

    Leaving the block stops listening, flushes the last words and waits. Without `on_event` the events wait in
    the iterator. With it, that function gets them in the recognition thread, and `join` waits for the end. An
    expected error (device gone, backend failed) is the last event, an `Error`, and is kept in `error`. Any
    other exception is a bug, which the iterator and `join` raise. A source that does not end after `stop` is
    abandoned after a while, with a `DeviceError`.

    Args:
        recognizer: a loaded `Recognizer`.
        source: where the audio comes from; it is opened and closed here.
        config: None for the defaults.
        partials: how the utterance in progress is followed. "auto" takes the bundle's streaming graph if that
            is cheaper, else "windowed", which encodes the last seconds again and again and works with every
            model. "streaming" requires the streaming graph. "off" gives finals only, like
            `LiveConfig(partials=False)`.
        recorder: keeps the stream; it is closed here.
        on_event: called with each event.
        partial_decoder: follows the utterance instead of what `partials` names.

    Raises:
        ConfigError: `partials` is unknown.
        BundleError: `partials` is "streaming" and the recognizer has no streaming graph.
        BackendError: the streaming graph cannot be loaded.
    """

    def __init__(
        self,
        recognizer: Transcriber,
        source: AudioSource,
        *,
        config: LiveConfig | None = None,
        partials: Partials = "auto",
        recorder: Recorder | None = None,
        on_event: Callable[[Event], None] | None = None,
        partial_decoder: PartialDecoder | None = None,
    ) -> None:
        config = config or LiveConfig()
        self.config = replace(config, partials=config.partials and partials != "off")
        self.stats = LiveStats()
        self.error: EdgeAsrError | None = None
        self.hearing = threading.Event()
        """Set when the first audio has arrived, or listening has ended without any."""
        self._recognizer = recognizer
        self._source = source
        self._recorder = recorder
        self._decoder = partial_decoder or _make_partial_decoder(
            recognizer, partials if self.config.partials else "off", self.config.partial_window_s
        )
        self._on_event = on_event
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._bug: BaseException | None = None
        self._history = AudioHistory()
        self._endpointer = Endpointer(self.config.endpoint)
        self._earliest = 0
        self._utterance: _Utterance | None = None
        self._next_partial_at = 0.0
        self._thread = threading.Thread(target=self._run, name="edge-asr-live", daemon=True)
        self._is_started = False
        self._ended = threading.Event()
        self._stopped_at: float | None = None
        # The holder decides whether the state still belongs to the recognition thread.
        self._handover = threading.Lock()
        self._waiting_since: float | None = None
        self._is_left_behind = False

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
            self._ended.wait()

    def __iter__(self) -> Iterator[Event]:
        """Yield events as they happen, until listening has ended.

        Raises:
            ConfigError: listening has not begun, or the events go to `on_event`.
        """
        if self._on_event is not None:
            raise ConfigError("events go to on_event; leave it out to iterate over them")
        self._check_started()
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)  # so that another iteration ends at once
        self.join()

    def start(self) -> None:
        """Begin to listen; return at once, without waiting for the device."""
        self._is_started = True
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, from any thread, without waiting; what was heard is still recognized."""
        is_first = self._stopped_at is None
        self._stopped_at = self._stopped_at or time.monotonic()
        self._source.stop()
        if is_first and self._is_started:
            threading.Thread(target=self._watch_source, name="edge-asr-live-stop", daemon=True).start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether it has come.

        Raises:
            ConfigError: listening has not begun.
        """
        self._check_started()
        has_ended = self._ended.wait(timeout_s)
        if self._bug is not None:
            raise self._bug
        return has_ended

    def _check_started(self) -> None:
        if not self._is_started:
            raise ConfigError(
                "listening has not begun; write `with LiveRecognizer(...) as live:`, or call start() first"
            )

    def _run(self) -> None:
        failure: EdgeAsrError | None = None
        try:
            self._ask_source(self._source.__enter__)
            try:
                self._listen()
            finally:
                exception = sys.exc_info()
                self._ask_source(lambda: self._source.__exit__(*exception))
        except _LeftBehindError:
            return  # the thread that abandoned the source has ended listening
        except EdgeAsrError as error:
            failure = error
        except BaseException as bug:  # noqa: BLE001 - raised again in the caller's thread by join
            self._bug = bug
        self._conclude(failure)

    def _conclude(self, failure: EdgeAsrError | None) -> None:
        """Emit the last words, the error if there was one, and the end."""
        self.error = failure
        try:
            try:
                self._end_utterance(self._history.end, "end")
            except EdgeAsrError as error:
                self.error = self.error or error
            if self.error is not None:
                at_s = self._history.end / STREAM_SAMPLE_RATE
                self._emit(Error(message=str(self.error), kind=type(self.error).__name__, at_s=at_s))
            if self._recorder is not None:
                self._recorder.close()
        except BaseException as bug:  # noqa: BLE001 - see _run
            self._bug = self._bug or bug
        finally:
            self.hearing.set()
            self._events.put(None)
            self._ended.set()

    def _ask_source(self, call: Callable[[], _Result]) -> _Result:
        """Call a method of the source, which may block.

        Raises:
            DeviceError: the source raised an OSError.
            _LeftBehindError: the source took too long after `stop`, so the state is no longer ours.
        """
        with self._handover:
            self._waiting_since = time.monotonic()
        try:
            return call()
        except EdgeAsrError:
            raise
        except OSError as error:
            raise DeviceError(f"the source failed with {type(error).__name__}: {error}") from error
        finally:
            with self._handover:
                self._waiting_since = None
                if self._is_left_behind:
                    raise _LeftBehindError

    def _watch_source(self) -> None:
        """End listening from this thread if the stopped source keeps the recognition thread waiting."""
        while not self._ended.wait(0.05):
            with self._handover:
                assert self._stopped_at is not None
                since = max(self._waiting_since or time.monotonic(), self._stopped_at)
                if time.monotonic() - since < _STOP_ANSWERS_S:
                    continue
                self._is_left_behind = True
            self._conclude(DeviceError(_does_not_end("still keeps its reader waiting")))

    def _read(self) -> AudioBlock | None:
        try:
            return self._ask_source(self._source.read)
        except (EdgeAsrError, _LeftBehindError):
            raise
        except Exception as bug:  # noqa: BLE001 - raised again in the caller's thread, behind the last words
            self._bug = bug
            return None

    def _listen(self) -> None:
        limit_s = self.config.max_audio_s
        limit = None if limit_s is None else round(limit_s * STREAM_SAMPLE_RATE)
        waited_s, heard_s = 0.0, 0.0  # counted since stop was called
        began = time.monotonic()
        while (block := self._read()) is not None:
            for loss in block.losses:
                self._lose(loss)
            for change in block.changes:
                self._change(change)
            samples = mono_from_waveform(block.samples)
            if self._stopped_at is not None:
                waited_s += time.monotonic() - max(began, self._stopped_at)
                heard_s += len(samples) / STREAM_SAMPLE_RATE
                if waited_s > _STOP_ANSWERS_S or heard_s > _STOP_AUDIO_S:
                    raise DeviceError(_does_not_end("still gives sound"))
            if limit is not None:
                samples = samples[: limit - self._history.end]
            if self._recorder is not None:
                self._recorder.write(samples)
            for start in range(0, len(samples), _STEP_SAMPLES):
                self._hear(samples[start : start + _STEP_SAMPLES])
            if limit is not None and self._history.end >= limit:
                break
            began = time.monotonic()

    def _lose(self, loss: Loss) -> None:
        now = self._history.end
        self._end_utterance(now, "gap")
        self._earliest = now
        self.stats = replace(
            self.stats,
            n_gaps=self.stats.n_gaps + 1,
            lost_s=self.stats.lost_s + loss.lost_s,
            n_overflows=self.stats.n_overflows + loss.reason.endswith("overflow"),
        )
        at_s = now / STREAM_SAMPLE_RATE
        self._emit(Gap(at_s=at_s, lost_s=loss.lost_s, reason=loss.reason, estimated=loss.estimated))

    def _change(self, change: SourceChange) -> None:
        if change.state == "lost":
            self._end_utterance(self._history.end, "gap")
            self._earliest = self._history.end
        at_s = self._history.end / STREAM_SAMPLE_RATE
        self._emit(DeviceChange(state=change.state, device=change.device, message=change.message, at_s=at_s))

    def _hear(self, samples: npt.NDArray[np.float32]) -> None:
        self._history.append(samples)
        self._endpointer.push(samples)
        now = self._history.end
        self.stats = replace(self.stats, audio_s=now / STREAM_SAMPLE_RATE)
        self.hearing.set()
        if self._utterance is None:
            start = self._endpointer.onset(max(self._earliest, self._history.start))
            if start is None:
                # twice the farthest that an onset can lie back
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
        self._utterance = _Utterance(start, PartialHypothesis((), start))
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
        if self.config.partials and (text := utterance.hypothesis.settled_text):
            self._show(utterance, text)

    def _show(self, utterance: _Utterance, text: str) -> None:
        if text == utterance.shown:
            return
        utterance.shown = text
        self.stats = replace(self.stats, n_partials=self.stats.n_partials + 1)
        self._emit(
            Partial(
                id=self._next_id,
                text=text,
                start_s=utterance.start / STREAM_SAMPLE_RATE,
                end_s=self._history.end / STREAM_SAMPLE_RATE,
            )
        )

    def _drop_utterance(self, now: int) -> None:
        """Drop sound without words, and keep what may be the onset of the next word."""
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
        heard = [token for token in transcript.heard if token.text.strip()]
        if not heard:
            self._show(utterance, "")
            return
        offset_s = utterance.start / STREAM_SAMPLE_RATE
        waited = 0 if speech_end is None else self._history.end - speech_end
        grammar = transcript.grammar and shift_grammar_result(transcript.grammar, offset_s)
        if grammar is not None and not grammar.matched:
            unmatched = Unmatched(
                id=self._next_id,
                heard=grammar.heard_text,
                start_s=heard[0].start_s + offset_s,
                end_s=heard[-1].end_s + offset_s,
                score=grammar.score,
                segment_start_samples=utterance.start,
                segment_end_samples=end,
                reason=reason,
                endpoint_wait_s=waited / STREAM_SAMPLE_RATE,
                compute_s=compute_s,
            )
            self.stats = replace(self.stats, n_unmatched=self.stats.n_unmatched + 1)
            self._emit(unmatched)
            return
        final = Final(
            id=self._next_id,
            text=transcript.text,
            start_s=transcript.words[0].start_s + offset_s,
            end_s=transcript.words[-1].end_s + offset_s,
            tokens=shift_tokens(transcript.tokens, offset_s),
            words=tuple(
                replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)
                for word in transcript.words
            ),
            segment_start_samples=utterance.start,
            segment_end_samples=end,
            reason=reason,
            endpoint_wait_s=waited / STREAM_SAMPLE_RATE,
            compute_s=compute_s,
            grammar=grammar,
        )
        self.stats = replace(self.stats, n_finals=self.stats.n_finals + 1)
        self._emit(final)

    @property
    def _next_id(self) -> int:
        """The number of the utterance in progress: finals and unmatched ones count together."""
        return self.stats.n_finals + self.stats.n_unmatched

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        else:
            self._events.put(event)


@dataclass(slots=True)
class _Utterance:
    """The utterance in progress: where it began, its hypothesis, and what was shown of it."""

    start: int
    hypothesis: PartialHypothesis
    shown: str = ""


class _LeftBehindError(Exception):
    """The source answered after listening had been ended without it."""


def _does_not_end(how: str) -> str:
    return (
        f"the source {how} {_STOP_ANSWERS_S:g} s after stop(), when its read() has to return None; listening "
        "ended without it"
    )


def _make_partial_decoder(recognizer: Transcriber, partials: Partials, window_s: float) -> PartialDecoder:
    """Make the decoder of `partials`; with "off", endpointing still asks it for words before a pause."""
    if partials not in ("auto", "streaming", "windowed", "off"):
        raise ConfigError(f"partials is {partials!r}; it must be auto, streaming, windowed or off")
    if partials == "auto" or partials == "streaming":
        if isinstance(recognizer, Recognizer):
            make_decoder = streaming_decoders(recognizer, partials)
            if make_decoder is not None:
                return make_decoder()
        elif partials == "streaming":
            raise ConfigError(
                f"partials is 'streaming', which needs a Recognizer with its bundle, not a "
                f"{type(recognizer).__name__}; use 'auto'"
            )
    return WindowedDecoder(recognizer, window_s)
