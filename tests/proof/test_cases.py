"""The proof tries what it says: all families, every edge, batches, padding that must not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.errors import AudioError
from edge_asr.feature_config import FeatureConfig
from edge_asr.proof.cases import FAMILIES, CasePlan, ProofCase, build_cases

F32Array = npt.NDArray[np.float32]
FACTOR = 8


@pytest.fixture(scope="module")
def clip(speechlike: Callable[..., F32Array]) -> F32Array:
    return speechlike(2.0)


@pytest.fixture(scope="module")
def cases(clip: F32Array) -> list[ProofCase]:
    return build_cases({"clip": clip}, FeatureConfig.from_preset("nemo"), FACTOR)


def of_family(cases: list[ProofCase], family: str) -> list[ProofCase]:
    return [case for case in cases if case.family == family]


def test_every_family_is_there_and_names_are_unique(cases: list[ProofCase]) -> None:
    assert {case.family for case in cases} == set(FAMILIES)
    names = [(case.family, case.name) for case in cases]
    assert len(set(names)) == len(names)


def test_features_are_usable(cases: list[ProofCase]) -> None:
    for case in cases:
        for row in case.features:
            assert row.dtype == np.float32
            assert row.shape[0] >= 1
            assert row.shape[1] == 80
            assert np.isfinite(row).all()


def test_every_subsampling_edge(cases: list[ProofCase]) -> None:
    lengths = [case.lengths for case in of_family(cases, "subsampling_edge")]
    assert lengths == [(n,) for n in range(1, 2 * FACTOR + 2)]


def test_hop_edges_are_one_sample_apart(cases: list[ProofCase]) -> None:
    counts = {int(case.name.split()[0]): case.lengths[0] for case in of_family(cases, "hop_edge")}
    edge = 160 * FACTOR
    assert (counts[edge - 1], counts[edge], counts[edge + 1]) == (FACTOR - 1, FACTOR, FACTOR)


def test_longest_random_length_is_thirty_seconds(cases: list[ProofCase]) -> None:
    lengths = [case.lengths[0] for case in of_family(cases, "random_length")]
    assert max(lengths) == 3000
    assert len(lengths) == CasePlan().random_lengths


def test_batches_from_one_to_eight(cases: list[ProofCase]) -> None:
    assert [len(case.features) for case in of_family(cases, "batch")] == list(range(1, 9))
    padded = of_family(cases, "padded")
    assert {len(case.features) for case in padded} >= set(range(2, 9))
    assert all(len(set(case.lengths)) > 1 for case in padded)
    assert {case.padding for case in padded} == {"zeros", "noise"}


def test_signals_are_what_they_say(cases: list[ProofCase]) -> None:
    signals = {case.name: case.features[0] for case in of_family(cases, "signal")}
    assert {"digital silence", "white noise at full scale", "square wave at full scale"} <= signals.keys()
    assert np.ptp(signals["digital silence"]) == 0.0
    # White noise of variance 1/3 through a window of power ~150: far above what speech reaches on average.
    assert signals["white noise at full scale"].mean() > signals["digital silence"].mean() + 10


def test_padding_fills_only_what_lies_beyond_a_row() -> None:
    rows = (np.ones((3, 2), np.float32), np.ones((5, 2), np.float32))
    zeros, lengths = ProofCase(family="padded", name="z", features=rows).batch()
    noise, _ = ProofCase(family="padded", name="n", features=rows, padding="noise").batch()
    assert lengths.tolist() == [3, 5]
    assert (zeros[0, 3:] == 0).all()
    assert (noise[0, 3:] != 0).all()
    for batch in (zeros, noise):
        assert (batch[0, :3] == 1).all()
        assert (batch[1] == 1).all()


def test_same_seed_same_cases(clip: F32Array) -> None:
    plan = CasePlan(random_lengths=3, max_random_s=2.0, max_batch=2)
    config = FeatureConfig.from_preset("nemo")
    first, second = (build_cases({"clip": clip}, config, 4, plan) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a.family, a.name, a.lengths) == (b.family, b.name, b.lengths)
        assert all(np.array_equal(x, y) for x, y in zip(a.features, b.features, strict=True))


def test_per_feature_and_kaldi_front_ends_give_cases(clip: F32Array) -> None:
    plan = CasePlan(random_lengths=1, max_random_s=1.0, max_batch=2)
    for config in (
        FeatureConfig.from_preset("nemo", normalize="per_feature"),
        FeatureConfig.from_preset("kaldi"),
    ):
        built = build_cases({"clip": clip}, config, 4, plan)
        assert {case.family for case in built} == set(FAMILIES)
        assert all(np.isfinite(row).all() for case in built for row in case.features)


def test_no_clip_and_a_too_short_clip_are_errors() -> None:
    config = FeatureConfig.from_preset("nemo")
    with pytest.raises(AudioError, match="at least one real clip"):
        build_cases({}, config, 4)
    with pytest.raises(AudioError, match=r"clip blip\.wav has 100 samples"):
        build_cases({"blip.wav": np.zeros(100, np.float32)}, config, 4)
