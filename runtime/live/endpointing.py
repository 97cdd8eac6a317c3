"""Detects when an utterance begins and ends, by level over an adaptive noise floor and by blanks.

Level opens an utterance, because it costs nothing to watch; with `vad`, a neural detector must agree. Level
and blanks together close it: a pause counts if it is quiet and the last token lies far enough back, or if
only blanks came for longer although it is loud (noise, music). So silence never reaches the recognizer. The
noise floor follows minimum statistics (Martin 2001, without its bias compensation): the quietest 100 ms of
the last seconds.
What this file does not do: run a recognizer, keep audio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.errors import ConfigError
from edge_asr.runtime.live.vad import SpeechDetector

FRAME_SAMPLES = STREAM_SAMPLE_RATE // 100
_FRAME_S = FRAME_SAMPLES / STREAM_SAMPLE_RATE
_SILENCE_DBFS = -120.0
_BLOCK_FRAMES = 10
_VAD_DELAY_S = 0.3
_VAD_MISSED_S = 0.2
"""So much of a weak beginning, such as a fricative, the detector may take for noise: `re` of `repeat`."""

_TOKEN_DELAY_S = 0.35
"""A token may be found so much later than its sound ends."""

_SURELY_SPEECH_S = 1.0
_SURELY_WORDS = 0.65
"""A sneeze with a voice in it is shorter and gives tokens of a lower mean confidence. A word may be as short,
such as "yes", and is far more certain (docs/results/noise-2026-11-29.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointConfig:
    """Settings of endpointing. Times are in seconds, levels in dB re full scale (RMS of 10 ms).

    Attributes:
        pause_s: how long it must be quiet after the last sound to end an utterance; a token that comes later
            than those of that sound counts as sound.
        blank_pause_s: how long only blanks must come to end an utterance while it is not quiet.
        tail_s: how much of the pause belongs to the utterance; the rest can begin the next one.
        pre_roll_s: audio before the level rises that belongs to the utterance.
        onset_s: how long the level must be up to begin an utterance.
        max_utterance_s: the longest utterance; a longer one is cut at the quietest place between words.
        cut_search_s: how far back from its end the search for that place goes.
        margin_db: how far above the noise floor a level counts as sound.
        min_level_dbfs: below this level nothing counts as sound.
        initial_noise_dbfs: noise floor that is assumed until it has been observed.
        noise_window_s: how far back the noise floor looks.
        vad: ask a neural detector too (vad.py, `pip install 'edge-asr[vad]'`): what it does not take for
            speech begins no utterance and keeps none open, and a short sound with improbable tokens gives no
            text.
    """

    pause_s: float = 0.6
    blank_pause_s: float = 1.5
    tail_s: float = 0.3
    pre_roll_s: float = 0.4
    onset_s: float = 0.05
    max_utterance_s: float = 20.0
    cut_search_s: float = 5.0
    margin_db: float = 9.0
    min_level_dbfs: float = -60.0
    initial_noise_dbfs: float = -55.0
    noise_window_s: float = 3.0
    vad: bool = False

    @classmethod
    def preset(cls, name: str, *, vad: bool = False) -> EndpointConfig:
        """Return the settings for a use: "command", "dictation" or "agent".

        Raises:
            ConfigError: there is no such preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"endpoint preset is {name!r}; it must be one of {', '.join(PRESETS)}")
        return cls(**PRESETS[name], vad=vad)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value):
                raise ConfigError(f"{field.name} is {value}; it must be a finite number")
            if field.name.endswith("_s") and value <= 0:
                raise ConfigError(f"{field.name} is {value}; it must be a positive number of seconds")
        if not self.tail_s <= self.pause_s <= self.blank_pause_s:
            raise ConfigError(
                f"need tail_s <= pause_s <= blank_pause_s, got {self.tail_s}, {self.pause_s} and "
                f"{self.blank_pause_s}"
            )
        if not self.cut_search_s + self.blank_pause_s <= self.max_utterance_s:
            raise ConfigError(
                f"max_utterance_s is {self.max_utterance_s}; it must be at least "
                f"cut_search_s + blank_pause_s = {self.cut_search_s + self.blank_pause_s}"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "command": {"pause_s": 0.4, "tail_s": 0.25, "blank_pause_s": 1.0, "max_utterance_s": 10.0},
    "dictation": {"pause_s": 1.0, "blank_pause_s": 2.0},
    "agent": {"pause_s": 0.2, "tail_s": 0.2, "blank_pause_s": 0.6},
}
"""What differs from the defaults. A command is short; a dictating person thinks between words; an agent
answers as soon as somebody pauses, and joins what it gets."""


class LevelMeter:
    """Level of the stream in frames of 10 ms, the noise floor, and which frames are sound.

    However the stream is cut into pushes, the result is the same. Frames are counted from the first sample
    pushed. A frame is `active` if it and most of its neighbors before it are above the threshold.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._rest = np.zeros(0, np.float32)
        n_kept = round((config.max_utterance_s + config.blank_pause_s) / _FRAME_S) + 200
        self._levels: deque[float] = deque(maxlen=n_kept)
        self._loud: deque[bool] = deque([False] * 5, maxlen=5)
        n_blocks = max(1, round(config.noise_window_s / (_BLOCK_FRAMES * _FRAME_S)))
        self._block_levels = deque([config.initial_noise_dbfs] * n_blocks, maxlen=n_blocks)
        self._block_power = 0.0
        self.n_frames = 0
        self.active_run_frames = 0
        self.last_active_frame = -1
        self.noise_dbfs = config.initial_noise_dbfs

    @property
    def threshold_dbfs(self) -> float:
        """Return the level above which a frame is loud."""
        return max(self.noise_dbfs + self._config.margin_db, self._config.min_level_dbfs)

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Measure samples f32 [n]; an incomplete frame waits for the next push."""
        pending = np.concatenate([self._rest, samples])
        n_frames = len(pending) // FRAME_SAMPLES
        self._rest = pending[n_frames * FRAME_SAMPLES :].copy()
        frames = pending[: n_frames * FRAME_SAMPLES].reshape(n_frames, FRAME_SAMPLES)
        for power in np.mean(np.square(frames, dtype=np.float64), axis=1):
            self._push_frame(float(power))

    def quietest_sample(self, start: int, end: int, width_s: float = 0.1) -> int:
        """Find the middle of the quietest `width_s` within recent stream samples [start, end)."""
        oldest = self.n_frames - len(self._levels)
        first = max(oldest, -(-start // FRAME_SAMPLES))
        last = min(self.n_frames, end // FRAME_SAMPLES)
        width = max(1, round(width_s / _FRAME_S))
        if last - first < width:
            return (start + end) // 2
        powers = np.power(10.0, np.array(list(self._levels)[first - oldest : last - oldest]) / 10)
        sums = np.convolve(powers, np.ones(width), mode="valid")
        return (first + int(np.argmin(sums))) * FRAME_SAMPLES + width * FRAME_SAMPLES // 2

    def _push_frame(self, power: float) -> None:
        level = max(_SILENCE_DBFS, 10 * np.log10(power + 1e-12))
        self._levels.append(level)
        self._block_power += power
        self.n_frames += 1
        if self.n_frames % _BLOCK_FRAMES == 0:
            mean = max(_SILENCE_DBFS, 10 * np.log10(self._block_power / _BLOCK_FRAMES + 1e-12))
            self._block_levels.append(mean)
            self._block_power = 0.0
            self.noise_dbfs = min(self._block_levels)
        self._loud.append(level >= self.threshold_dbfs)
        if self._loud[-1] and sum(self._loud) >= 3:
            self.active_run_frames += 1
            self.last_active_frame = self.n_frames - 1
        else:
            self.active_run_frames = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The end of an utterance, and its reason; `speech_end` is the sample where its sound ended."""

    sample: int
    speech_end: int
    reason: Literal["pause", "max_length", "no_words"]


class Endpointer:
    """Begins and ends utterances, in one thread. Positions are samples of the 16 kHz stream.

    Push audio, then ask `onset` while no utterance is open, or `endpoint` while one is open.
    """

    def __init__(self, config: EndpointConfig | None = None) -> None:
        self.config = config or EndpointConfig()
        self.meter = LevelMeter(self.config)
        self._vad = SpeechDetector() if self.config.vad else None

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Take samples f32 [n]."""
        self.meter.push(samples)
        if self._vad is not None:
            self._vad.push(samples, is_loud=self._was_loud())

    def onset(self, earliest: int) -> int | None:
        """Find where the utterance being heard begins, not before `earliest`; None in silence."""
        run = self.meter.active_run_frames
        if self._vad is not None:
            if not self._vad.is_speech or not self._was_loud():
                return None
            # The detector is late by up to a few chunks; the level tells where the sound rose.
            rise = (self.meter.n_frames - run) * FRAME_SAMPLES if run else self._vad.speech_start
            rise = max(min(rise, self._vad.speech_start), self._vad.speech_start - _samples(_VAD_DELAY_S))
            return max(earliest, rise - _samples(self.config.pre_roll_s + _VAD_MISSED_S))
        if run < round(self.config.onset_s / _FRAME_S):
            return None
        rise = (self.meter.n_frames - run) * FRAME_SAMPLES
        return max(earliest, rise - _samples(self.config.pre_roll_s))

    def endpoint(self, start: int, now: int, last_token_end: int | None) -> Endpoint | None:
        """Find where the utterance that began at `start` ends; None while it goes on.

        The answer is only as good as `last_token_end` is recent: ask, decode again, ask again.

        Args:
            start: first sample of the utterance.
            now: one past the newest sample.
            last_token_end: where the last recognized token ends; None if there is none.
        """
        config = self.config
        token_end = start if last_token_end is None else last_token_end
        speech_end = self._speech_end(start, now, token_end)
        is_quiet = now - speech_end >= _samples(config.pause_s)
        is_blank = now - token_end >= _samples(config.blank_pause_s)
        if last_token_end is None and (is_quiet or is_blank):
            return Endpoint(now, speech_end, "no_words")
        if is_quiet:
            return Endpoint(max(speech_end + _samples(config.tail_s), token_end), speech_end, "pause")
        if is_blank:
            sample = self.meter.quietest_sample(token_end + _samples(config.tail_s), now)
            return Endpoint(sample, token_end, "pause")
        if now - start >= _samples(config.max_utterance_s):
            return Endpoint(now, now, "max_length")
        return None

    def pause_end(self, start: int, now: int, last_token_end: int | None) -> int | None:
        """Find where the utterance ends if it stays quiet from here on; None before its tail was heard.

        Args:
            start, now, last_token_end: as of `endpoint`.
        """
        token_end = start if last_token_end is None else last_token_end
        end = max(self._speech_end(start, now, token_end) + _samples(self.config.tail_s), token_end)
        return end if end <= now else None

    def is_noise(self, start: int, end: int, confidences: Sequence[float]) -> bool:
        """Tell whether tokens of [start, end) are improbable and the detector heard little speech there."""
        if self._vad is None or self._vad.speech_s(start, end) >= _SURELY_SPEECH_S:
            return False
        return float(np.mean(confidences)) < _SURELY_WORDS

    def cut(self, gaps: list[tuple[int, int]], end: int) -> int:
        """Choose where to cut an utterance that is too long: the quietest place between two words.

        Args:
            gaps: [start, end) in samples between recognized words.
            end: one past the last sample of the utterance.
        """
        first = end - _samples(self.config.cut_search_s)
        last = end - _samples(self.config.tail_s)
        near = [(max(a, first), min(b, last)) for a, b in gaps if b > first and a < last]
        if near:
            # The widest gap is the most certain word boundary; among equals the latest one.
            start, stop = max(near, key=lambda gap: (gap[1] - gap[0], gap[1]))
            return self.meter.quietest_sample(start, stop)
        return self.meter.quietest_sample(first, last)

    def _speech_end(self, start: int, now: int, token_end: int) -> int:
        sound_end = max(start, min(self._sound_end(), now))
        # A token soon behind the sound belongs to it; a later one is speech that the level missed.
        return token_end if token_end > sound_end + _samples(_TOKEN_DELAY_S) else sound_end

    def _sound_end(self) -> int:
        sound_end = (self.meter.last_active_frame + 1) * FRAME_SAMPLES
        return sound_end if self._vad is None else min(sound_end, self._vad.speech_end)

    def _was_loud(self) -> bool:
        """Tell whether there was sound within the time by which the detector may be late."""
        last = self.meter.last_active_frame
        return last >= 0 and self.meter.n_frames - last <= _VAD_DELAY_S / _FRAME_S


def _samples(seconds: float) -> int:
    return round(seconds * STREAM_SAMPLE_RATE)
