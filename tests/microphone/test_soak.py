"""A short soak of `edge-asr listen` (scripts/soak_listen.py is the long one), and what its limits catch."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from soak_listen import RATE, Limits, Run, judge, plan, soak

from edge_asr.audio import read_audio
from edge_asr.training.noise import NoisePool


@pytest.mark.mic
def test_a_short_soak_keeps_memory_and_latency(needs_virtual_microphone: None, sample_path: Path) -> None:
    """After 9 s to get warm, 9 s: less growth than sound that is kept: 3.8 MB a minute at 16 kHz."""
    speech = read_audio(sample_path, RATE)[: round(2.5 * RATE)]
    noise = 0.01 * NoisePool(RATE).cut("pink", 2 * RATE, np.random.default_rng(0))
    kinds = ("speech", "noise", "speech", "speech")
    turns = iter([(kind, speech if kind == "speech" else noise) for kind in (*kinds, *kinds)])
    run = soak(17.5, turns, [], every_s=0.5)
    found, failures = judge(run, Limits(warm_up=0.5, memory_kb_min=2_500, latency_growth_s=1.0, missed=0.0))
    assert not failures, found
    assert min(found["memory_mb"]) > 60
    assert min(row[2] for row in run.memory) > 10_000, "the recording process was not seen"


def healthy(minutes: int = 30) -> Run:
    """A run that passes: memory that steps up (a longer utterance) and stays, a final for each utterance."""
    run = Run(seconds=60.0 * minutes, summary="heard it all")
    for second in range(0, 60 * minutes, 5):
        run.memory.append((float(second), 90_000 + (3_000 if second > 600 else 0), 39_000 + second % 3, 16))
    for second in range(0, 60 * minutes, 10):
        run.turns.append((float(second), "speech" if second % 20 == 0 else "noise"))
        if second % 20 == 0:
            run.finals.append({"at": second + 5.0, "latency_s": 0.65, "behind_s": 0.02})
    return run


def test_a_healthy_run_passes() -> None:
    found, failures = judge(healthy(), Limits())
    assert failures == []
    assert (found["finals"], found["missed"], found["finals_of_noise"]) == (90, 0, 0)
    assert found["latency_s"] == [0.65] * 10


@pytest.mark.parametrize("fault", ["memory", "recording", "step", "latency", "gaps", "final", "files"])
def test_each_limit_is_seen_when_it_is_passed(fault: str) -> None:
    run = healthy()
    leak_kb = {"memory": (0.5, 0), "recording": (0, 0.5)}.get(fault, (0, 0))  # a second
    run.memory = [
        (
            at,
            round(own + leak_kb[0] * at),
            round(other + leak_kb[1] * at),
            files + (fault == "files") * int(at > 900),
        )
        for at, own, other, files in run.memory
    ]
    if fault == "step":
        run.memory[-9:] = [(at, own + 20_000, other, files) for at, own, other, files in run.memory[-9:]]
    if fault == "latency":
        for final in run.finals:
            final["latency_s"] += 0.2 * final["at"] / run.seconds
    if fault == "gaps":
        run.gaps = 1
    if fault == "final":
        run.finals = run.finals[5:]
    _, failures = judge(run, Limits())
    assert len(failures) == 1
    assert {"recording": "memory", "step": "memory"}.get(fault, fault) in failures[0]


def test_the_plan_is_seeded_and_has_every_kind(sample_path: Path) -> None:
    first, again, other = (list(islice(plan([sample_path], [], seed), 30)) for seed in (1, 1, 2))
    assert all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert [kind for kind, _ in first] != [kind for kind, _ in other]
    assert {kind for kind, _ in first} == {"speech", "speech in noise", "noise", "silence"}
    for kind, sound in first:
        level = float(np.sqrt(np.mean(sound**2)))
        assert level == 0 if kind == "silence" else 0.002 < level < 0.3, kind
