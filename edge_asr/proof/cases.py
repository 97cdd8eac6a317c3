"""The inputs of a proof: real clips, and every length and signal at which an export tends to break.

Families: `real` (clips as they are), `hop_edge` (sample counts around a frame), `subsampling_edge`
(every frame count from 1 to 2 s + 1, and those around the first outputs), `random_length` (up to 30 s),
`batch` (equal lengths, 1 to 8 rows), `padded` (unequal lengths, the padding filled with zeros or with noise
that must not matter) and `signal` (digital silence, full-scale white noise, full-scale square wave, clipped
speech).
What this file does not do: run anything (compare.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_asr.errors import AudioError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]

FAMILIES = ("real", "hop_edge", "subsampling_edge", "random_length", "batch", "padded", "signal")
_MAX_EDGE_FACTOR = 16
_PADDING_NOISE = 10.0  # feature units; speech log-mel lies within about +-16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofCase:
    """One input of a proof.

    Attributes:
        family: one of `FAMILIES`.
        name: what is special about it, such as "17 frames".
        features: one [T_i, F] float32 per row, T_i >= 1.
        padding: what fills a row beyond its length; it must not matter.
    """

    family: str
    name: str
    features: tuple[F32Array, ...]
    padding: Literal["zeros", "noise"] = "zeros"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the frames of each row."""
        return tuple(len(row) for row in self.features)

    def batch(self) -> tuple[F32Array, npt.NDArray[np.int64]]:
        """Return padded features [B, max T_i, F] float32 and their lengths [B] int64."""
        lengths = np.asarray(self.lengths, dtype=np.int64)
        shape = (len(lengths), int(lengths.max()), self.features[0].shape[1])
        padded = np.zeros(shape, np.float32)
        if self.padding == "noise":
            padded[:] = np.random.default_rng(1).uniform(-_PADDING_NOISE, _PADDING_NOISE, shape)
        for row, values in enumerate(self.features):
            padded[row, : len(values)] = values
        return padded, lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """How much a proof tries; the default covers what edge_asr promises.

    Attributes:
        random_lengths: how many random lengths.
        max_random_s: the longest of them, always included, in seconds.
        max_batch: every batch size from 1 to this one.
        seed: seed of all random choices and noise.
    """

    random_lengths: int = 8
    max_random_s: float = 30.0
    max_batch: int = 8
    seed: int = 0


def build_cases(
    clips: Mapping[str, F32Array],
    config: FeatureConfig,
    frames: OutputFrames | int,
    plan: CasePlan | None = None,
) -> list[ProofCase]:
    """Build all cases of a proof.

    Args:
        clips: real recordings by name, each a waveform [S] float32 at `config.sample_rate`; at least one.
        config: front end of the model.
        frames: how many output frames a clip has; a number is feature frames per output frame.
        plan: how much to try.

    Raises:
        AudioError: there is no clip, or one is shorter than a feature frame.
    """
    plan = plan or CasePlan()
    rule = OutputFrames.of(frames)
    if not clips:
        raise AudioError("a proof needs at least one real clip; give --clips")
    extractor = FeatureExtractor(config)
    for name, waveform in clips.items():
        if extractor.n_frames(len(waveform)) < 1:
            raise AudioError(
                f"clip {name} has {len(waveform)} samples, less than a feature frame; leave it out of --clips"
            )
    speech = np.concatenate(list(clips.values()))
    source = _Source(extractor, speech, np.random.default_rng(plan.seed))
    return [
        *_real(extractor, clips),
        *_hop_edges(source, rule.factor),
        *_subsampling_edges(source, rule),
        *_random_lengths(source, plan),
        *_batches(source, rule.factor, plan),
        *_padded(source, rule, plan),
        *_signals(source, plan),
    ]


class _Source:
    """Cuts pieces of exact length out of the clips laid end to end, repeated as needed."""

    def __init__(self, extractor: FeatureExtractor, speech: F32Array, generator: np.random.Generator) -> None:
        self.extractor = extractor
        self.config = extractor.config
        self.generator = generator
        self._speech = speech

    def waveform(self, n_samples: int) -> F32Array:
        """Return [n_samples] of speech from a random place."""
        start = int(self.generator.integers(len(self._speech)))
        repeats = -(-(start + n_samples) // len(self._speech))
        return np.tile(self._speech, repeats)[start : start + n_samples]

    def frames(self, n_frames: int) -> F32Array:
        """Return features of speech, exactly [n_frames, F]."""
        needed = (n_frames + 1) * self.config.hop_length + self.config.win_length
        return self.extractor(self.waveform(needed))[:n_frames]


def _real(extractor: FeatureExtractor, clips: Mapping[str, F32Array]) -> Iterator[ProofCase]:
    for name, waveform in clips.items():
        yield ProofCase(family="real", name=name, features=(extractor(waveform),))


def _hop_edges(source: _Source, factor: int) -> Iterator[ProofCase]:
    hop, window = source.config.hop_length, source.config.win_length
    edges = (hop, window, hop * factor, hop * factor + window, 25 * hop * factor)
    counts = sorted({edge + step for edge in edges for step in (-1, 0, 1)})
    for n_samples in counts:
        features = source.extractor(source.waveform(n_samples))
        if len(features):
            yield ProofCase(family="hop_edge", name=f"{n_samples} samples", features=(features,))


def _subsampling_edges(source: _Source, rule: OutputFrames) -> Iterator[ProofCase]:
    factor = rule.factor
    counts = set(range(1, 2 * factor + 2))
    if factor > _MAX_EDGE_FACTOR:  # in samples, not feature frames: where the number of outputs changes
        counts = {1, factor - 1, factor, factor + 1, 2 * factor, 2 * factor + 1}
    counts |= {max(rule.first + n * factor + step, 1) for n in (0, 1) for step in (-1, 0)}
    for n_frames in sorted(counts):
        yield ProofCase(
            family="subsampling_edge", name=f"{n_frames} frames", features=(source.frames(n_frames),)
        )


def _random_lengths(source: _Source, plan: CasePlan) -> Iterator[ProofCase]:
    longest = int(plan.max_random_s * source.config.sample_rate / source.config.hop_length)
    # Log-uniform, so that short lengths, where the edges are, come as often as long ones.
    drawn = np.exp(source.generator.uniform(np.log(20), np.log(longest), max(plan.random_lengths - 1, 0)))
    for n_frames in (*sorted(int(n) for n in drawn), longest):
        features = (source.frames(n_frames),)
        yield ProofCase(family="random_length", name=f"{n_frames} frames", features=features)


def _batches(source: _Source, factor: int, plan: CasePlan) -> Iterator[ProofCase]:
    for n_rows in range(1, plan.max_batch + 1):
        rows = tuple(source.frames(max(96, 12 * factor)) for _ in range(n_rows))
        yield ProofCase(family="batch", name=f"batch {n_rows}", features=rows)


def _padded(source: _Source, rule: OutputFrames, plan: CasePlan) -> Iterator[ProofCase]:
    factor = rule.factor
    longest = max(240, 30 * factor)
    for n_rows in range(2, plan.max_batch + 1):
        drawn = source.generator.integers(1, longest, n_rows - 1)
        rows = tuple(source.frames(int(n)) for n in (*drawn, longest))
        for padding in ("zeros", "noise"):
            yield ProofCase(
                family="padded", name=f"batch {n_rows}, padding {padding}", features=rows, padding=padding
            )
    edges = (
        1,
        factor - 1,
        factor,
        factor + 1,
        2 * factor,
        2 * factor + 1,
        10 * factor + max(rule.first - 1, 0),
    )
    rows = tuple(source.frames(max(n, 1)) for n in edges)
    yield ProofCase(family="padded", name="rows at subsampling edges", features=rows, padding="noise")


def _signals(source: _Source, plan: CasePlan) -> Iterator[ProofCase]:
    rate = source.config.sample_rate
    time = np.arange(3 * rate) / rate
    noise = source.generator.uniform(-1.0, 1.0, len(time))
    square = np.sign(np.sin(2.0 * np.pi * 440.0 * time) + 1e-9)
    loud = source.waveform(len(time)) * 1000.0
    signals: Sequence[tuple[str, npt.NDArray[np.float64]]] = (
        ("digital silence", np.zeros(len(time))),
        ("white noise at full scale", noise),
        ("square wave at full scale", square),
        ("speech clipped at full scale", np.clip(loud, -1.0, 1.0)),
        ("silence, then noise", np.concatenate([np.zeros(rate), noise[:rate]])),
    )
    for name, waveform in signals:
        yield ProofCase(family="signal", name=name, features=(source.extractor(waveform.astype(np.float32)),))
