"""Plans what every batch of an epoch holds, as a pure function of (seed, epoch).

An epoch takes each clip `weight` times (fractions at random), shuffles, joins some clips, and lets
lhotse's DynamicBucketingSampler group the results by duration. Nothing here depends on what
happened before, so a run that was killed continues with the very batches it would have seen.
All random numbers of an item's augmentation follow from `Item.seed`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.errors import TrainingError, require
from edge_asr.training.config import AugmentConfig, DataConfig


@dataclass(frozen=True, slots=True)
class Item:
    """One training example: clips joined in order, each at a speed.

    `gaps_s` has one more entry than `clips`: near-silence before, between and after them.
    """

    clips: tuple[int, ...]
    speeds: tuple[float, ...]
    gaps_s: tuple[float, ...]
    seed: tuple[int, ...]
    duration_s: float


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a micro-batch in the run: `index` counts within `epoch`."""

    epoch: int
    index: int


def plan_epoch(
    durations_s: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    data: DataConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    world_size: int = 1,
) -> list[list[Item]]:
    """Plan the global batches of one epoch, in order.

    Args:
        durations_s: f64 [n_clips].
        weights: f64 [n_clips], expected number of times each clip is taken.
        data: batch sizes; `max_batch_s` and `max_batch_utterances` are multiplied by world_size.
        augment: joining, padding and speeds; all off when not `enabled`.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        world_size: processes that share each global batch.

    Raises:
        TrainingError: there are no clips, or fewer than processes.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    whole = np.floor(weights).astype(np.int64)
    counts = whole + (rng.random(len(weights)) < weights - whole)
    order = np.repeat(np.arange(len(weights)), counts)
    rng.shuffle(order)
    items = list(_join_clips(order, durations_s, augment, rng, seed, epoch))
    if len(items) < world_size:
        raise TrainingError(
            f"{len(items)} training clips for {world_size} processes; add data, or fix the bad rows above"
        )
    batches = _bucket(items, data, seed=seed, epoch=epoch, world_size=world_size)
    return [batch for batch in batches if len(batch) >= world_size]


def iterate_batches(
    durations_s: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    data: DataConfig,
    augment: AugmentConfig,
    *,
    seed: int,
    start: Position,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Position, list[Item]]]:
    """Yield this rank's share of every global batch from `start` on, without end."""
    epoch, index = start.epoch, start.index
    while True:
        batches = plan_epoch(
            durations_s, weights, data, augment, seed=seed, epoch=epoch, world_size=world_size
        )
        for position in range(index, len(batches)):
            yield Position(epoch, position), batches[position][rank::world_size]
        epoch, index = epoch + 1, 0


def _join_clips(
    order: npt.NDArray[np.int64],
    durations_s: npt.NDArray[np.float64],
    augment: AugmentConfig,
    rng: np.random.Generator,
    seed: int,
    epoch: int,
) -> Iterator[Item]:
    position, number = 0, 0
    while position < len(order):
        clips = [int(order[position])]
        speeds = [_draw_speed(augment, rng)]
        gaps = [_draw_padding(augment, rng) + _draw_offset(augment, rng)]
        total = gaps[0] + durations_s[clips[0]] / speeds[0]
        position += 1
        if augment.enabled and rng.random() < augment.concat_prob:
            target = rng.uniform(total, max(total, augment.concat_max_s))
            while position < len(order):
                gap = float(rng.uniform(*augment.concat_gap_s))
                speed = _draw_speed(augment, rng)
                longer = total + gap + durations_s[order[position]] / speed
                if longer > augment.concat_max_s or total >= target:
                    break
                clips.append(int(order[position]))
                gaps.append(gap)
                speeds.append(speed)
                total, position = longer, position + 1
        gaps.append(_draw_padding(augment, rng))
        yield Item(
            tuple(clips), tuple(speeds), tuple(gaps), (seed, epoch, 1, number), float(total + gaps[-1])
        )
        number += 1


def _draw_speed(augment: AugmentConfig, rng: np.random.Generator) -> float:
    return float(rng.choice(augment.speeds)) if augment.enabled else 1.0


def _draw_padding(augment: AugmentConfig, rng: np.random.Generator) -> float:
    if not augment.enabled or rng.random() >= augment.pad_prob:
        return 0.0
    return float(rng.uniform(0.0, augment.pad_max_s))


def _draw_offset(augment: AugmentConfig, rng: np.random.Generator) -> float:
    if not augment.enabled or augment.offset_max_s == 0:
        return 0.0
    return float(rng.uniform(0.0, augment.offset_max_s))


def _bucket(
    items: Sequence[Item], data: DataConfig, *, seed: int, epoch: int, world_size: int
) -> list[list[Item]]:
    if len(items) < 2:
        return [list(items)]
    lhotse = require("lhotse", extra="train")
    sampling = require("lhotse.dataset.sampling.dynamic_bucketing", extra="train")
    cuts = lhotse.CutSet.from_cuts(
        lhotse.MonoCut(id=str(number), start=0.0, duration=round(item.duration_s, 4), channel=0)
        for number, item in enumerate(items)
    )
    with warnings.catch_warnings():
        # lhotse recommends lazy manifests and buffer sizes for corpora that do not fit into memory, and
        # warns about single clips longer than a batch, which are intended.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"lhotse\.")
        sampler = sampling.DynamicBucketingSampler(
            cuts,
            max_duration=data.max_batch_s * world_size,
            max_cuts=data.max_batch_utterances * world_size,
            num_buckets=max(2, min(data.n_buckets, len(items) // 8)),
            shuffle=True,
            seed=seed,
            buffer_size=max(len(items), 1000),
            # The whole global batch is planned on every rank; each rank then takes its share.
            rank=0,
            world_size=1,
            # Without this, lhotse 1.33 mistakes empty buckets for filled ones at the end of an epoch
            # (`if b` on a queue.Queue) and so loses what is left.
            sync_buckets=True,
        )
        sampler.set_epoch(epoch)
        return [[items[int(cut.id)] for cut in batch] for batch in sampler]
