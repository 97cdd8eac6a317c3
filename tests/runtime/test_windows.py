"""Windows: the stitched log-probs are those of one pass, and no token is doubled or lost.

The encoders here are fakes, named so. `fake_encode` looks at each output frame alone, but is blind
near the edges of what it is given, as a real model is. With `shift` each window also places its
tokens up to a frame early or late, as real models do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import Emissions
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.windows import WindowGeometry, choose_cut, stitch_windows

F32Array = npt.NDArray[np.float32]

FACTOR = 4
N_CLASSES = 6
BLANK = 5
GEOMETRY = WindowGeometry(window_frames=160, overlap_frames=64, margin_frames=3, subsampling_factor=FACTOR)


def log_probs_of(path: npt.NDArray[np.int64]) -> F32Array:
    result = np.full((len(path), N_CLASSES), -8.0, np.float32)
    result[np.arange(len(path)), path] = -0.01
    return result


def features_of(path: npt.NDArray[np.int64], n_frames: int) -> F32Array:
    """[n_frames, 1] features whose every FACTOR-th frame names the token."""
    return np.repeat(path, FACTOR)[:n_frames, None].astype(np.float32)


def fake_encode(n_blind: int, shifts: list[int] | None = None) -> Callable[[F32Array], F32Array]:
    """Fake model; window k plays its tokens `shifts[k]` output frames late."""
    calls = iter(shifts or [])

    def encode(features: F32Array) -> F32Array:
        path = features[::FACTOR, 0].astype(np.int64)
        shift = next(calls, 0)
        path = np.concatenate([np.full(max(shift, 0), BLANK), path, np.full(max(-shift, 0), BLANK)])
        path = path[: len(path) - shift] if shift > 0 else path[-shift:]
        path[:n_blind] = 0
        path[len(path) - n_blind :] = 0
        return log_probs_of(path)

    return encode


def stitch(features: F32Array, encode: Callable[[F32Array], F32Array], cuts: list[float]) -> F32Array:
    pieces = np.split(features, sorted(int(cut * len(features)) for cut in cuts))

    def encode_both(window: F32Array) -> Emissions:
        log_probs = encode(window)
        return Emissions(log_probs, 2 * log_probs[:, :3])  # any number that belongs to its frame

    emissions = list(stitch_windows(pieces, encode_both, GEOMETRY, BLANK))
    parts = [one.log_probs for one in emissions]
    for one in emissions:
        assert one.encoded is not None
        np.testing.assert_array_equal(one.encoded, 2 * one.log_probs[:, :3])
    return np.concatenate(parts) if parts else np.zeros((0, N_CLASSES), np.float32)


@settings(max_examples=150, deadline=None)
@given(n_frames=st.integers(0, 800), seed=st.integers(0, 2**16), cuts=st.lists(st.floats(0, 1), max_size=12))
def test_stitched_is_one_pass(n_frames: int, seed: int, cuts: list[float]) -> None:
    """Tokens everywhere, no silence at all: every frame comes from a window that could see it."""
    path = np.random.default_rng(seed).integers(1, N_CLASSES, -(-n_frames // FACTOR))
    features = features_of(path, n_frames)
    stitched = stitch(features, fake_encode(n_blind=3), cuts)
    assert len(stitched) == -(-n_frames // FACTOR)
    expected = log_probs_of(path)
    expected[:3] = log_probs_of(np.zeros(len(expected[:3]), np.int64))
    expected[-3:] = log_probs_of(np.zeros(len(expected[-3:]), np.int64))
    assert np.array_equal(stitched, expected)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 3), st.integers(3, 5)), max_size=60),
    shifts=st.lists(st.integers(-1, 1), min_size=12, max_size=12),
    offset=st.integers(0, 40),
    seed=st.integers(0, 2**16),
)
def test_windows_that_disagree_by_a_frame_lose_and_double_nothing(
    lengths: list[tuple[int, int]], shifts: list[int], offset: int, seed: int
) -> None:
    tokens = np.random.default_rng(seed).integers(1, BLANK, len(lengths))
    parts = [np.full(offset + 4, BLANK)]
    for token, (n_token, n_blank) in zip(tokens, lengths, strict=True):
        parts += [np.full(n_token, token), np.full(n_blank, BLANK)]
    path = np.concatenate([*parts, np.full(4, BLANK)]).astype(np.int64)
    stitched = stitch(features_of(path, len(path) * FACTOR), fake_encode(0, shifts), [])
    assert greedy_decode(stitched, BLANK).ids.tolist() == tokens.tolist()


def test_equal_tokens_at_a_cut_stay_two() -> None:
    """The pause between two equal tokens is what the cut must not swallow."""
    for gap_at in range(30, 42):
        path = np.full(60, 2)
        path[gap_at] = BLANK
        stitched = stitch(features_of(path, 240), fake_encode(0), [])
        assert greedy_decode(stitched, BLANK).ids.tolist() == [2, 2]


def test_one_window_is_one_pass() -> None:
    calls: list[int] = []

    def fake_counting_encode(features: F32Array) -> F32Array:
        calls.append(len(features))
        return fake_encode(0)(features)

    for n_frames in (1, GEOMETRY.window_frames, GEOMETRY.window_frames + 1):
        calls.clear()
        stitch(features_of(np.full(200, BLANK), n_frames), fake_counting_encode, [])
        assert calls == ([n_frames] if n_frames <= 160 else [160, 65])


def test_the_cut_is_in_the_longest_common_silence() -> None:
    left = log_probs_of(np.array([1, 5, 1, 5, 5, 5, 5, 2, 5, 5, 1, 1]))
    right = log_probs_of(np.array([5, 5, 1, 5, 5, 5, 1, 5, 5, 5, 5, 5]))
    assert choose_cut(left, right, blank_id=BLANK, margin=0) == 4
    assert 8 <= choose_cut(left[6:], right[6:], blank_id=BLANK, margin=0) + 6 <= 9


def test_without_common_silence_the_most_silent_frame_is_cut() -> None:
    left = log_probs_of(np.array([1, 1, 1, 1, 1, 1]))
    left[4, BLANK] = -1.0
    left[0, BLANK] = -0.5
    assert choose_cut(left, left, blank_id=BLANK, margin=1) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window_frames": 161}, "161"),
        ({"overlap_frames": 0}, "overlap of 0"),
        ({"overlap_frames": 84}, "84"),
        ({"margin_frames": 8}, "8"),
        ({"subsampling_factor": 0}, "factor 0"),
    ],
)
def test_impossible_geometry_is_named(changes: dict[str, int], named: str) -> None:
    values = {"window_frames": 160, "overlap_frames": 64, "margin_frames": 3, "subsampling_factor": 4}
    with pytest.raises(ConfigError, match=named):
        WindowGeometry(**{**values, **changes})
