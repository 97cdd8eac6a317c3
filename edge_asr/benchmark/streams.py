"""Runs N streams at real-time pace: latencies against the true ends of speech, and whether N is sustained.

Every stream is a `LiveRecognizer` with its own `PacedSource`, and all share one loaded model, as in a server.
What they hear is made of phrases whose true ends are known (`audio_clips.py`). Streams begin apart from each
other, spread over one utterance, so that they do not all end speech at once.

Proof: each final is compared with `transcribe` of exactly the samples it names; one that differs is a
`GateError`. Sustained means: the p99 of one call of the recognizer is below the interval between two updates,
and no audio was lost. Partials become rarer under load (`LiveConfig.partial_load`), which
`partial_interval` shows. What this file does not do: prepare speech, write reports.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.benchmark.audio_clips import SpokenSignal
from edge_asr.benchmark.fresh_process import hash_texts
from edge_asr.benchmark.paced_source import PacedSource
from edge_asr.benchmark.schema import Streams, Times
from edge_asr.errors import GateError
from edge_asr.runtime.live.events import Event, Final, Gap, Partial
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialDecoder, PartialHypothesis, Transcriber, WindowedDecoder
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.live.streaming_decoder import StreamingDecoder
from edge_asr.runtime.transcript import Transcript

STREAMING, WINDOWED = "streaming", "windowed"
MOST_STREAMS = 256
NO_TEXT = "the model gave no text"
RANDOM = "the weights are random: what they call speech means nothing"


class _TimedTranscriber:
    """Makes finals, and times its calls."""

    def __init__(self, inner: Transcriber, calls: list[tuple[float, float]]) -> None:
        self._inner = inner
        self._calls = calls

    def transcribe(self, waveform: npt.NDArray[np.float32], sample_rate: int) -> Transcript:
        began = time.perf_counter()
        transcript = self._inner.transcribe(waveform, sample_rate)
        self._calls.append((began, time.perf_counter() - began))
        return transcript


class _TimedDecoder:
    """Makes partials, and times its calls."""

    def __init__(self, inner: PartialDecoder, calls: list[tuple[float, float]]) -> None:
        self._inner = inner
        self._calls = calls

    def begin(self, start: int) -> None:
        self._inner.begin(start)

    def decode(self, history: AudioHistory) -> PartialHypothesis:
        began = time.perf_counter()
        hypothesis = self._inner.decode(history)
        self._calls.append((began, time.perf_counter() - began))
        return hypothesis

    def follow(self, history: AudioHistory, interval: int) -> PartialHypothesis | None:
        began = time.perf_counter()
        hypothesis = self._inner.follow(history, interval)
        if hypothesis is not None:
            self._calls.append((began, time.perf_counter() - began))
        return hypothesis


@dataclass(slots=True)
class _Stream:
    """One stream.

    Attributes:
        source: what it hears.
        calls: when each call of the recognizer began, and its seconds.
        events: with the monotonic times at which they came.
    """

    source: PacedSource
    calls: list[tuple[float, float]] = field(default_factory=list)
    events: list[tuple[float, Event]] = field(default_factory=list)

    def note(self, event: Event) -> None:
        self.events.append((time.monotonic(), event))


@dataclass(slots=True)
class Latencies:
    """Seconds, over all utterances of all streams."""

    first_partial: list[float] = field(default_factory=list)
    partial_interval: list[float] = field(default_factory=list)
    partial_lag: list[float] = field(default_factory=list)
    end_to_final: list[float] = field(default_factory=list)
    endpoint_wait: list[float] = field(default_factory=list)
    final_compute: list[float] = field(default_factory=list)


def run_streams(
    recognizer: Transcriber,
    signal: SpokenSignal,
    n_streams: int,
    *,
    config: LiveConfig | None = None,
    is_random: bool = False,
    make_decoder: Callable[[], StreamingDecoder] | None = None,
) -> Streams:
    """Let `n_streams` streams hear `signal` at once, at real-time pace.

    Args:
        recognizer: a loaded one; called from all streams' threads.
        signal: at 16 kHz.
        n_streams: at least 1.
        config: configuration of every stream; None for the defaults.
        is_random: the weights are, so latencies of text are left out.
        make_decoder: gives what follows the utterances of one stream; None for `WindowedDecoder`.

    Raises:
        GateError: a final is not what `transcribe` gives for its samples.
        EdgeAsrError: a stream ended with it.
    """
    config = config or LiveConfig()
    spread_s = (signal.utterances[-1][0] - signal.utterances[0][0]) / max(len(signal.utterances) - 1, 1)
    spread_s = spread_s / STREAM_SAMPLE_RATE or len(signal.waveform) / STREAM_SAMPLE_RATE
    streams = [
        _Stream(PacedSource(signal.waveform, delay_s=spread_s * index / n_streams))
        for index in range(n_streams)
    ]
    decoders = [
        make_decoder() if make_decoder else WindowedDecoder(recognizer, config.partial_window_s)
        for _ in streams
    ]
    lives = [
        LiveRecognizer(
            _TimedTranscriber(recognizer, stream.calls),
            stream.source,
            config=config,
            on_event=stream.note,
            partial_decoder=_TimedDecoder(decoder, stream.calls),
        )
        for stream, decoder in zip(streams, decoders, strict=True)
    ]
    _listen(lives)
    events = [event for stream in streams for _, event in stream.events]
    finals = [event for event in events if isinstance(event, Final)]
    gaps = [event for event in events if isinstance(event, Gap)]
    lost = "audio was lost, so places in the stream are not those of the speech"
    if not gaps:
        _prove(recognizer, signal, finals)
    latencies = Latencies()
    for stream in streams:
        measure_latencies(latencies, stream.events, signal, stream.source.spoken_at)
    unknown = RANDOM if is_random else lost if gaps else None
    computed = [seconds for _, seconds in sorted(call for stream in streams for call in stream.calls)]
    why_not = _why_not_sustained(computed, len(gaps), config.partial_interval_s)

    def times(seconds: list[float]) -> Times:
        if unknown is not None:
            return Times.missing(unknown)
        return Times.of(seconds, NO_TEXT, sessions=even_sessions(len(seconds), len(signal.utterances)))

    return Streams(
        mode=STREAMING if make_decoder else WINDOWED,
        n_streams=n_streams,
        n_utterances=len(signal.utterances),
        audio_s=round(len(signal.waveform) / STREAM_SAMPLE_RATE, 3),
        update_interval_s=config.partial_interval_s,
        sustained=why_not is None,
        why_not=why_not,
        update_compute=Times.of(
            computed,
            "no sound was heard, so nothing was recognized",
            sessions=even_sessions(len(computed), len(signal.utterances)),
        ),
        first_partial=times(latencies.first_partial),
        partial_interval=times(latencies.partial_interval),
        partial_lag=times(latencies.partial_lag),
        end_to_final=times(latencies.end_to_final),
        endpoint_wait=times(latencies.endpoint_wait),
        final_compute=times(latencies.final_compute),
        source_late=Times.of([value for stream in streams for value in stream.source.late_s]),
        n_gaps=len(gaps),
        n_overflows=sum(gap.reason != "missing" for gap in gaps),
        lost_s=round(sum(gap.lost_s for gap in gaps), 3),
        n_finals=len(finals),
        text_sha256=hash_texts([final.text for final in finals]),
    )


def warm_decoder(decoder: PartialDecoder, signal: SpokenSignal) -> None:
    """Warm a decoder up by following the signal once, as live recognition would."""
    history = AudioHistory()
    decoder.begin(0)
    n_update = round(LiveConfig().partial_interval_s * STREAM_SAMPLE_RATE)
    for begin in range(0, len(signal.waveform), n_update):
        history.append(signal.waveform[begin : begin + n_update])
        decoder.decode(history)


def find_most_sustained(try_streams: Callable[[int], Streams]) -> tuple[list[Streams], int]:
    """Double the streams until they are no longer sustained, then bisect.

    Args:
        try_streams: runs so many.

    Returns:
        All tries by rising number, and the most that were sustained (0 when not even one).
    """
    tried: dict[int, Streams] = {}

    def holds(n_streams: int) -> bool:
        tried[n_streams] = try_streams(n_streams)
        return tried[n_streams].sustained

    low, high = 0, 1
    while high <= MOST_STREAMS and holds(high):
        low, high = high, high * 2
    while low and high - low > 1 and high <= MOST_STREAMS:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return [tried[n] for n in sorted(tried)], low


def measure_latencies(
    latencies: Latencies,
    events: Iterable[tuple[float, Event]],
    signal: SpokenSignal,
    spoken_at: Callable[[int], float],
) -> None:
    """Add one stream's latencies.

    Args:
        latencies: added to.
        events: with the monotonic times at which they came.
        signal: what was heard; its utterances are the truth.
        spoken_at: monotonic time of a sample.
    """
    partials = [(at, event) for at, event in events if isinstance(event, Partial) and event.text]
    finals = [(at, event) for at, event in events if isinstance(event, Final)]
    begins = [begin for begin, _ in signal.utterances]
    for index, (begin, end) in enumerate(signal.utterances):
        next_begin = begins[index + 1] if index + 1 < len(begins) else len(signal.waveform)
        within = [
            (at, event) for at, event in partials if begin < event.end_s * STREAM_SAMPLE_RATE <= next_begin
        ]
        if within:
            latencies.first_partial.append(within[0][0] - spoken_at(begin))
        latencies.partial_interval += [
            after - before for (before, _), (after, _) in itertools.pairwise(within)
        ]
        for at, final in finals:
            # The final that has the end of speech inside it, in time: not one before it, not a later one.
            if final.segment_start_samples < end <= final.segment_end_samples + STREAM_SAMPLE_RATE // 10:
                latencies.end_to_final.append(at - spoken_at(end))
                latencies.endpoint_wait.append(at - spoken_at(end) - final.compute_s)
                latencies.final_compute.append(final.compute_s)
                break
    latencies.partial_lag += [
        at - spoken_at(round(event.end_s * STREAM_SAMPLE_RATE)) for at, event in partials
    ]


def _listen(lives: list[LiveRecognizer]) -> None:
    """Run all streams to their end.

    Raises:
        EdgeAsrError: the first stream's that ended with one.
    """
    try:
        for live in lives:
            live.start()
        for live in lives:
            while not live.join(0.5):
                pass
    except BaseException:
        for live in lives:
            live.stop()
        raise
    for live in lives:
        if live.error is not None:
            raise live.error


def _prove(recognizer: Transcriber, signal: SpokenSignal, finals: list[Final]) -> None:
    known: dict[tuple[int, int], str] = {}
    for final in finals:
        segment = (final.segment_start_samples, final.segment_end_samples)
        if segment not in known:
            samples = signal.waveform[slice(*segment)]
            known[segment] = recognizer.transcribe(samples, STREAM_SAMPLE_RATE).text
        if final.text != known[segment]:
            raise GateError(
                f"a stream gave {final.text!r} for samples {segment[0]} to {segment[1]}, `transcribe` gives "
                f"{known[segment]!r}; no number of this run is reported"
            )


def even_sessions(n_samples: int, n_sessions: int) -> list[int]:
    """Split `n_samples` into at most `n_sessions` similar parts, as utterances lie apart like sessions."""
    n_sessions = min(n_sessions, n_samples)
    return [
        (index + 1) * n_samples // n_sessions - index * n_samples // n_sessions for index in range(n_sessions)
    ]


def _why_not_sustained(computed: list[float], n_gaps: int, interval_s: float) -> str | None:
    if n_gaps:
        return f"{n_gaps} times audio was lost"
    if not computed:
        return "nothing was recognized"
    p99 = float(np.percentile(computed, 99))
    if p99 >= interval_s:
        return f"p99 of an update is {p99 * 1e3:.0f} ms, the interval {interval_s * 1e3:.0f} ms"
    return None
