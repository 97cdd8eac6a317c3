"""Batches of features, prepared in the background.

`BatchBuilder` turns the planned items of a batch into padded features; a torch DataLoader runs it
in worker processes that share the audio cache. All randomness here follows from `Item.seed`.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.training.alignment import labels_from_spans
from edge_asr.training.augment import (
    augment_waveform,
    build_warp,
    change_speed,
    join_waveforms,
    mask_features,
)
from edge_asr.training.config import AugmentConfig, SpecAugmentConfig
from edge_asr.training.corpus import Clip
from edge_asr.training.distillation import Teacher, TeacherTargets, collate_targets, place_posteriors
from edge_asr.training.flat_start import IGNORED, join_labels, spread_tokens
from edge_asr.training.noise import NoisePool
from edge_asr.training.plan import Item, Position
from edge_asr.training.rooms import build_rooms
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary


@dataclass(slots=True)
class Batch:
    """One padded batch.

    features: f32 [B, T, n_mels], zero beyond the lengths.  feature_lens: i64 [B].
    targets: i64 [sum of target_lens], all rows one after another.  target_lens: i64 [B].
    alignment: i64 [B, T'] labels for a flat start (see `flat_start`), or None.
    teacher: targets of a teacher (see `distillation`), or None.
    """

    features: torch.Tensor
    feature_lens: torch.Tensor
    targets: torch.Tensor
    target_lens: torch.Tensor
    audio_s: float
    position: Position
    alignment: torch.Tensor | None = None
    teacher: TeacherTargets | None = None

    def to(self, device: torch.device) -> Batch:
        """Move features and lengths to `device`."""
        return Batch(
            self.features.to(device, non_blocking=True),
            self.feature_lens.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.target_lens.to(device, non_blocking=True),
            self.audio_s,
            self.position,
            None if self.alignment is None else self.alignment.to(device, non_blocking=True),
            None if self.teacher is None else self.teacher.to(device),
        )


@dataclass(frozen=True, slots=True)
class FlatStart:
    """The data that the labels of a flat start depend on.

    weights: f64 [V], see `token_weights`.  spans: for each clip when its tokens are said, see `load_spans`.
    Tokens of clips without spans are spread evenly.
    """

    weights: npt.NDArray[np.float64]
    factor: int
    blank_id: int
    spans: Sequence[npt.NDArray[np.float32] | None] = ()


class BatchBuilder(torch.utils.data.Dataset[Batch]):
    """Maps (position, items) to a `Batch`."""

    def __init__(
        self,
        clips: Sequence[Clip],
        targets: Sequence[npt.NDArray[np.int64]],
        features: FeatureConfig,
        augment: AugmentConfig,
        spec_augment: SpecAugmentConfig,
        mask_value: npt.NDArray[np.float32],
        seed: int,
        flat_start: FlatStart | None = None,
        separator: Sequence[int] = (),
        noises: Sequence[npt.NDArray[np.int16]] = (),
        teacher: Teacher | None = None,
    ) -> None:
        self.flat_start = flat_start
        self.teacher = teacher
        self.separator = separator
        self.clips = clips
        self.targets = targets
        self.sample_rate = features.sample_rate
        self.extractor = FeatureExtractor(features)
        self.hop_s = features.hop_length / features.sample_rate
        self.augment = augment
        self.spec_augment = spec_augment
        self.mask_value = mask_value
        self.noise = NoisePool(self.sample_rate, seed, noises)
        has_rooms = augment.enabled and augment.room_prob > 0
        self.rooms = build_rooms(augment, self.sample_rate, seed) if has_rooms else []

    def __getitem__(self, planned: tuple[Position, list[Item]]) -> Batch:
        position, items = planned
        rows, targets, labels, taught, n_samples = [], [], [], [], 0
        for item in items:
            rng = np.random.default_rng(item.seed)
            parts = self.load_parts(item)
            waveform = self.build_waveform(item, parts, rng)
            n_samples += len(waveform)
            features = self.extractor(waveform)
            if self.flat_start is not None:
                labels.append(self.align(item, parts, len(features), self.flat_start))
            if self.teacher is not None:
                taught.append(self.place_teacher(item, parts, len(features), self.teacher))
            if self.augment.enabled:
                if self.augment.vtlp_range != (1.0, 1.0):
                    warp = build_warp(self.extractor.config, float(rng.uniform(*self.augment.vtlp_range)))
                    features = features @ warp
                features = mask_features(features, self.spec_augment, self.mask_value, rng)
            rows.append(features)
            targets.append(join_targets([self.targets[clip] for clip in item.clips], self.separator))
        batch = collate(rows, targets, n_samples / self.sample_rate, position)
        if labels:
            padded = np.full((len(labels), max(len(row) for row in labels)), IGNORED, np.int64)
            for index, row in enumerate(labels):
                padded[index, : len(row)] = row
            batch.alignment = torch.from_numpy(padded)
        batch.teacher = collate_targets(taught)
        return batch

    def load_parts(self, item: Item) -> list[npt.NDArray[np.float32]]:
        """Load the clips of one item at their speeds, f32 [S_i] each."""
        return [
            change_speed(self.clips[clip].load(self.sample_rate), speed)
            for clip, speed in zip(item.clips, item.speeds, strict=True)
        ]

    def align(
        self, item: Item, parts: Sequence[npt.NDArray[np.float32]], n_frames: int, flat_start: FlatStart
    ) -> npt.NDArray[np.int64]:
        """Label one item for the flat start, i64 [T']."""
        hop, labels, starts, begin = self.extractor.config.hop_length, [], [], 0
        blank_id = flat_start.blank_id
        for clip, part, gap_s, speed in zip(item.clips, parts, item.gaps_s, item.speeds, strict=False):
            begin += int(gap_s * self.sample_rate)
            starts.append(begin // hop)
            tokens, spans = self.targets[clip], flat_start.spans[clip] if flat_start.spans else None
            if spans is None:
                row = spread_tokens(part, tokens, flat_start.weights, hop_length=hop, blank_id=blank_id)
            else:
                frame_s = hop / self.sample_rate
                row = labels_from_spans(
                    spans / np.float32(speed), tokens, len(part) // hop, frame_s=frame_s, blank_id=blank_id
                )
            labels.append(row)
            begin += len(part)
        return join_labels(labels, starts, n_frames, factor=flat_start.factor, blank_id=blank_id)

    def place_teacher(
        self, item: Item, parts: Sequence[npt.NDArray[np.float32]], n_frames: int, teacher: Teacher
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
        """The teacher's targets of one item, see `distillation.place_posteriors`."""
        begin_s, placed = 0.0, []
        for clip, part, gap_s, speed in zip(item.clips, parts, item.gaps_s, item.speeds, strict=False):
            begin_s, length_s = begin_s + gap_s, len(part) / self.sample_rate
            placed.append((clip, begin_s, length_s, speed))
            begin_s += length_s
        n_output_frames = math.ceil(n_frames * self.hop_s / teacher.frame_s - 1e-6)
        return place_posteriors(placed, n_output_frames, teacher)

    def build_waveform(
        self,
        item: Item,
        parts: Sequence[npt.NDArray[np.float32]],
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        """Join the clips of one item and, if enabled, augment them: f32 [S]."""
        waveform = join_waveforms(parts, item.gaps_s, self.sample_rate, self.noise, rng)
        if not self.augment.enabled:
            return waveform

        def draw_babble() -> list[npt.NDArray[np.float32]]:
            chosen = rng.integers(len(self.clips), size=int(rng.integers(3, 7)))
            return [self.clips[index].load(self.sample_rate) for index in chosen]

        return augment_waveform(
            waveform, self.augment, self.sample_rate, self.noise, draw_babble, rng, self.rooms
        )


def join_targets(parts: Sequence[npt.NDArray[np.int64]], separator: Sequence[int]) -> npt.NDArray[np.int64]:
    """Join the targets of clips, i64 [N], with `separator` between two texts (see `word_separator`)."""
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [np.asarray(separator, np.int64), part]
    return np.concatenate(joined)


def word_separator(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return what separates two texts: the space of a char vocabulary; nothing if pieces begin words."""
    if vocabulary.kind == "char" and WORD_BOUNDARY in vocabulary.tokens:
        return (vocabulary.tokens.index(WORD_BOUNDARY),)
    return ()


def collate(
    rows: Sequence[npt.NDArray[np.float32]],
    targets: Sequence[npt.NDArray[np.int64]],
    audio_s: float,
    position: Position,
) -> Batch:
    """Pad rows of [T_i, n_mels] to one [B, T, n_mels] and join the targets."""
    lens = [len(row) for row in rows]
    features = np.zeros((len(rows), max(lens), rows[0].shape[1]), np.float32)
    for index, row in enumerate(rows):
        features[index, : len(row)] = row
    return Batch(
        torch.from_numpy(features),
        torch.tensor(lens, dtype=torch.int64),
        torch.from_numpy(np.concatenate(targets)),
        torch.tensor([len(target) for target in targets], dtype=torch.int64),
        audio_s,
        position,
    )


def load_batches(
    builder: BatchBuilder,
    planned: Iterator[tuple[Position, list[Item]]],
    *,
    n_workers: int,
    prefetch_batches: int,
) -> Iterator[Batch]:
    """Yield batches in the planned order, from worker processes (or inline with n_workers 0)."""
    loader: Any = torch.utils.data.DataLoader(
        builder,
        batch_size=None,
        sampler=_Once(planned),
        num_workers=n_workers,
        prefetch_factor=prefetch_batches if n_workers else None,
        collate_fn=_same,
        worker_init_fn=_init_worker,
        multiprocessing_context="fork" if n_workers else None,
        # Without its own generator, DataLoader would draw from the global one.
        generator=torch.Generator().manual_seed(0),
    )
    return iter(loader)


def compute_cmvn(
    clips: Sequence[Clip], features: FeatureConfig, *, n_clips: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Compute global mean and standard deviation, f32 [n_mels] each, over a random sample of clips."""
    extractor = FeatureExtractor(features)
    rng = np.random.default_rng([seed, 3])
    chosen = rng.permutation(len(clips))[:n_clips]
    total = np.zeros(features.n_mels)
    squares = np.zeros(features.n_mels)
    n_frames = 0
    for index in chosen:
        values = extractor(clips[int(index)].load(features.sample_rate)).astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        n_frames += len(values)
    mean = total / max(n_frames, 1)
    variance = np.maximum(squares / max(n_frames, 1) - mean**2, 1e-10)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


class _Once(torch.utils.data.Sampler[Any]):
    """Gives DataLoader an endless plan, one entry at a time."""

    def __init__(self, planned: Iterator[tuple[Position, list[Item]]]) -> None:
        self._planned = planned

    def __iter__(self) -> Iterator[Any]:
        return self._planned


def _init_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _same(batch: Any) -> Any:
    return batch
