"""The utterances of one live stream: samples in, events out, in one thread and without waiting.

Endpointing, partials and finals of a stream, and what was lost of it. A final is `Recognizer.transcribe` of
exactly the samples [segment_start, segment_end) of the stream, so a recording can be checked against it. It
is made as soon as its last sample was heard, and waits for the pause to be long enough.
What this file does not do: read sources, run threads (recognizer.py), detect pauses (endpointing.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.errors import ConfigError
from edge_asr.runtime.live.endpointing import Endpoint, EndpointConfig, Endpointer
from edge_asr.runtime.live.events import DeviceChange, Event, Final, FinalReason, Gap, Partial, Unmatched
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialDecoder, PartialHypothesis, Transcriber
from edge_asr.runtime.live.sources import Loss, SourceChange
from edge_asr.runtime.live.streaming_decoder import StreamingDecoder
from edge_asr.runtime.transcript import Transcript, shift_grammar_result, shift_tokens

_STEP_SAMPLES = 320
_ALONE_SAMPLES = 2 * STREAM_SAMPLE_RATE
"""Improbable words this soon behind others are no noise: spelled letters may be utterances of their own."""
_MAX_WASTED = 0.1
"""Share of an utterance that finals may have taken, in time on the clock, that its speaker has overtaken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """How live recognition behaves.

    Attributes:
        endpoint: when utterances begin and end.
        partials: whether to show the utterance in progress.
        partial_interval_s: least audio between two partials that each cost a run of their own: windows, and
            what follows the last whole chunk of a streaming graph. Whole chunks are shown at once.
        partial_window_s: most audio that a partial encodes.
        partial_load: share of the time that partials may take; on a slow machine they become rarer.
        final: "offline" transcribes the whole utterance, which has the fewest errors; "stream" takes what the
            streaming graph found, which costs next to nothing.
        max_audio_s: stop after exactly this much audio; None continues until stopped.
    """

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    partials: bool = True
    partial_interval_s: float = 0.3
    partial_window_s: float = 8.0
    partial_load: float = 0.5
    final: Literal["offline", "stream"] = "offline"
    max_audio_s: float | None = None

    def __post_init__(self) -> None:
        if not self.partial_interval_s > 0:
            raise ConfigError(f"partial_interval_s is {self.partial_interval_s}; it must be positive")
        if not 0 < self.partial_load <= 1:
            raise ConfigError(f"partial_load is {self.partial_load}; it must lie in (0, 1]")
        if self.final not in ("offline", "stream"):
            raise ConfigError(f"final is {self.final!r}; it must be offline or stream")
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


class LiveStream:
    """Follows one stream, one call at a time.

    Args:
        transcriber: transcribes finals.
        decoder: follows the utterance in progress.
        config: settings.
        emit: called with each event.

    Raises:
        ConfigError: finals are those of a streaming graph, and the decoder has none, or not what it takes.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        decoder: PartialDecoder,
        config: LiveConfig,
        emit: Callable[[Event], None],
    ) -> None:
        if config.final == "stream" and not isinstance(decoder, StreamingDecoder):
            raise ConfigError(
                "final is 'stream', and partials are windowed or off here; use final='offline', or "
                "partials='streaming' with a bundle that has a streaming graph"
            )
        if config.final == "stream" and isinstance(decoder, StreamingDecoder) and not decoder.ends_utterances:
            raise ConfigError(
                "final is 'stream', and the streaming graph gives no frames of its encoder here, which this "
                "decoder needs; use final='offline', or the decoder greedy or beam"
            )
        self.config = config
        self.stats = LiveStats()
        self._transcriber = transcriber
        self._decoder = decoder
        self._emit = emit
        self._history = AudioHistory()
        self._endpointer = Endpointer(config.endpoint)
        self._earliest = 0
        self._spoken_until = -2 * _ALONE_SAMPLES  # where the last final ends
        self._utterance: _Utterance | None = None
        self._next_partial_at = 0.0

    @property
    def n_heard(self) -> int:
        """Return how many samples have been heard."""
        return self._history.end

    def hear(self, samples: npt.NDArray[np.float32]) -> None:
        """Take the next samples f32 [n] of the stream.

        Raises:
            BackendError: the model failed.
        """
        for start in range(0, len(samples), _STEP_SAMPLES):
            self._hear(samples[start : start + _STEP_SAMPLES])

    def end(self) -> None:
        """Give the last words; raises as `hear`."""
        self._end_utterance(self.n_heard, "end")

    def lose(self, loss: Loss) -> None:
        """End the utterance before a gap, and say how much is missing."""
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

    def change(self, change: SourceChange) -> None:
        """Say what has become of the device; when it is lost, the utterance ends."""
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
        if self.config.partials and time.monotonic() >= self._next_partial_at:
            interval = round(self.config.partial_interval_s * STREAM_SAMPLE_RATE)
            self._decode(utterance, lambda: self._decoder.follow(self._history, interval))
        endpoint = self._ask_endpoint(now, utterance)
        if endpoint is not None and utterance.hypothesis.end < now and not self._is_prepared(endpoint):
            self._decode(utterance)
            endpoint = self._ask_endpoint(now, utterance)
        if endpoint is None:
            self._prepare_final(now, utterance)
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

    def _decode(
        self, utterance: _Utterance, decode: Callable[[], PartialHypothesis | None] | None = None
    ) -> None:
        """Decode to the newest sound, or as `decode` does."""
        began = time.monotonic()
        hypothesis = decode() if decode else self._decoder.decode(self._history)
        if hypothesis is None:
            return
        utterance.hypothesis = hypothesis
        ended = time.monotonic()
        self.stats = replace(self.stats, compute_s=self.stats.compute_s + ended - began)
        self._next_partial_at = ended + (ended - began) * (1 / self.config.partial_load - 1)
        if self.config.partials and (text := utterance.hypothesis.settled_text):
            self._show(utterance, text)

    def _prepare_final(self, now: int, utterance: _Utterance) -> None:
        """Transcribe the utterance as it will be if the pause goes on; if it does not, that is wasted."""
        end = self._endpointer.pause_end(utterance.start, now, utterance.hypothesis.last_token_end)
        prepared = utterance.prepared
        if end is None or (prepared is not None and prepared.end == end):
            return
        if utterance.hypothesis.end < end - round(self.config.endpoint.tail_s * STREAM_SAMPLE_RATE):
            self._decode(utterance)  # only now is it known what was said last
            return
        if prepared is not None:
            utterance.wasted_s += prepared.compute_s
            utterance.prepared = None
        allowed_s = _MAX_WASTED * (now - utterance.start) / STREAM_SAMPLE_RATE
        if utterance.hypothesis.last_token_end is not None and utterance.wasted_s <= allowed_s:
            utterance.prepared = self._transcribe(utterance, end)

    def _is_prepared(self, endpoint: Endpoint) -> bool:
        """Tell whether the final of a pause is there, and heard nothing in the second half of its tail."""
        prepared = None if self._utterance is None else self._utterance.prepared
        if prepared is None or (endpoint.reason, endpoint.sample) != ("pause", prepared.end):
            return False
        spoken = [token.end_s for token in prepared.transcript.heard if token.text.strip()]
        quiet_s = prepared.transcript.duration_s - max(spoken, default=0.0)
        return quiet_s >= self.config.endpoint.tail_s / 2

    def _transcribe(self, utterance: _Utterance, end: int) -> _Prepared:
        began = time.monotonic()
        if isinstance(self._decoder, StreamingDecoder) and self.config.final == "stream":
            transcript = self._decoder.transcript(self._history, end)
        else:
            segment = self._history.read(utterance.start, end)
            transcript = self._transcriber.transcribe(segment, STREAM_SAMPLE_RATE)
        compute_s = time.monotonic() - began
        self.stats = replace(self.stats, compute_s=self.stats.compute_s + compute_s)
        return _Prepared(end, transcript, compute_s)

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
        made = utterance.prepared
        is_ready = made is not None and made.end == end
        made = made if made is not None and is_ready else self._transcribe(utterance, end)
        transcript = made.transcript
        self._earliest = end
        heard = [token for token in transcript.heard if token.text.strip()]
        if not heard or (
            transcript.grammar is None
            and utterance.start - self._spoken_until > _ALONE_SAMPLES
            and self._endpointer.is_noise(utterance.start, end, [token.confidence for token in heard])
        ):
            self._show(utterance, "")
            return
        offset_s = utterance.start / STREAM_SAMPLE_RATE
        waited = 0 if speech_end is None else self._history.end - speech_end
        facts: dict[str, Any] = {
            "id": self._next_id,
            "segment_start_samples": utterance.start,
            "segment_end_samples": end,
            "reason": reason,
            "endpoint_wait_s": waited / STREAM_SAMPLE_RATE,
            "compute_s": 0.0 if is_ready else made.compute_s,
        }
        grammar = transcript.grammar and shift_grammar_result(transcript.grammar, offset_s)
        if grammar is not None and not grammar.matched:
            self.stats = replace(self.stats, n_unmatched=self.stats.n_unmatched + 1)
            self._emit(
                Unmatched(
                    heard=grammar.heard_text,
                    start_s=heard[0].start_s + offset_s,
                    end_s=heard[-1].end_s + offset_s,
                    score=grammar.score,
                    **facts,
                )
            )
            return
        words = tuple(
            replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)
            for word in transcript.words
        )
        self.stats = replace(self.stats, n_finals=self.stats.n_finals + 1)
        self._spoken_until = end
        self._emit(
            Final(
                text=transcript.text,
                start_s=words[0].start_s,
                end_s=words[-1].end_s,
                tokens=shift_tokens(transcript.tokens, offset_s),
                words=words,
                grammar=grammar,
                **facts,
            )
        )

    @property
    def _next_id(self) -> int:
        """The number of the utterance in progress: finals and unmatched ones count together."""
        return self.stats.n_finals + self.stats.n_unmatched


@dataclass(slots=True)
class _Utterance:
    """The utterance in progress: where it began, its hypothesis, what was shown of it, and its final."""

    start: int
    hypothesis: PartialHypothesis
    shown: str = ""
    prepared: _Prepared | None = None
    wasted_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The transcript of an utterance until sample `end`."""

    end: int
    transcript: Transcript
    compute_s: float
