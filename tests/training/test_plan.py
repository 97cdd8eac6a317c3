"""The plan of batches: a pure function of seed and epoch, complete, within limits, shared fairly."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from edge_asr.errors import TrainingError
from edge_asr.training.config import AugmentConfig, DataConfig
from edge_asr.training.plan import Position, iterate_batches, plan_epoch

DURATIONS = np.random.default_rng(0).uniform(0.5, 9.0, 120)
ONES = np.ones(120)
DATA = DataConfig(max_batch_s=40.0, max_batch_utterances=16, n_buckets=4)
PLAIN = AugmentConfig(enabled=False)
JOINING = AugmentConfig(concat_prob=0.6, concat_max_s=12.0, pad_prob=0.5)


def test_same_seed_same_plan_other_epoch_other_plan() -> None:
    one = plan_epoch(DURATIONS, ONES, DATA, JOINING, seed=5, epoch=2)
    assert plan_epoch(DURATIONS, ONES, DATA, JOINING, seed=5, epoch=2) == one
    assert plan_epoch(DURATIONS, ONES, DATA, JOINING, seed=5, epoch=3) != one
    assert plan_epoch(DURATIONS, ONES, DATA, JOINING, seed=6, epoch=2) != one


@pytest.mark.parametrize("augment", [PLAIN, JOINING], ids=["plain", "joining"])
def test_every_clip_once_within_the_limits(augment: AugmentConfig) -> None:
    batches = plan_epoch(DURATIONS, ONES, DATA, augment, seed=1, epoch=0)
    clips = Counter(clip for batch in batches for item in batch for clip in item.clips)
    assert clips == Counter(range(120))
    for batch in batches:
        assert len(batch) <= 16
        assert len(batch) * max(item.duration_s for item in batch) <= 40.0 + 13.0
    spread = [max(i.duration_s for i in b) - min(i.duration_s for i in b) for b in batches]
    everything = max(DURATIONS) - min(DURATIONS)
    assert np.mean(spread) < 0.5 * everything  # bucketed by duration
    seeds = {item.seed for batch in batches for item in batch}
    assert len(seeds) == sum(len(batch) for batch in batches)


def test_joined_items_add_up() -> None:
    items = [i for b in plan_epoch(DURATIONS, ONES, DATA, JOINING, seed=1, epoch=0) for i in b]
    joined = [item for item in items if len(item.clips) > 1]
    assert joined
    for item in items:
        assert len(item.speeds) == len(item.clips)
        assert len(item.gaps_s) == len(item.clips) + 1
        assert set(item.speeds) <= {0.9, 1.0, 1.1}
        seconds = sum(DURATIONS[c] / s for c, s in zip(item.clips, item.speeds, strict=True)) + sum(
            item.gaps_s
        )
        assert item.duration_s == pytest.approx(seconds)
    assert all(item.duration_s <= 12.0 + 0.5 for item in joined)


def test_weights_oversample() -> None:
    weights = np.where(np.arange(120) < 60, 2.5, 0.5)
    counts: Counter[int] = Counter()
    for epoch in range(20):
        for batch in plan_epoch(DURATIONS, weights, DATA, PLAIN, seed=1, epoch=epoch):
            counts.update(clip for item in batch for clip in item.clips)
    heavy = sum(counts[clip] for clip in range(60)) / (60 * 20)
    light = sum(counts[clip] for clip in range(60, 120)) / (60 * 20)
    # Standard error of a mean of 1200 draws of variance 1/4 is 0.0144; five of them.
    assert heavy == pytest.approx(2.5, abs=0.072)
    assert light == pytest.approx(0.5, abs=0.072)


def test_two_ranks_share_what_one_process_would_do_with_doubled_batches() -> None:
    doubled = DataConfig(max_batch_s=80.0, max_batch_utterances=32, n_buckets=4)
    whole = plan_epoch(DURATIONS, ONES, doubled, JOINING, seed=1, epoch=0)
    start = Position(0, 0)
    ranks = [
        iterate_batches(DURATIONS, ONES, DATA, JOINING, seed=1, start=start, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    usable = [batch for batch in whole if len(batch) >= 2]
    for batch, (place, mine), (other_place, theirs) in zip(usable, *ranks, strict=False):
        assert place == other_place
        assert sorted([*mine, *theirs], key=lambda i: i.seed) == sorted(batch, key=lambda i: i.seed)


def test_starting_anywhere_goes_on_the_same() -> None:
    def take(start: Position, n: int) -> list:  # type: ignore[type-arg]
        plan = iterate_batches(DURATIONS, ONES, DATA, JOINING, seed=1, start=start)
        return list(itertools.islice(plan, n))

    whole = take(Position(0, 0), 40)
    assert whole[-1][0].epoch >= 1
    for skip in (1, 7, 25):
        assert take(whole[skip][0], 40 - skip) == whole[skip:]


def test_fewer_clips_than_processes() -> None:
    with pytest.raises(TrainingError, match="1 training clips for 2 processes"):
        plan_epoch(DURATIONS[:1], ONES[:1], DATA, PLAIN, seed=1, epoch=0, world_size=2)
