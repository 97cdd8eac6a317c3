"""Output frames: the two-number rule against convolutions counted one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.frames import OutputFrames

STACKS = {
    "NeMo striding x8": ([(3, 2, 2)] * 3, (8, 1)),
    "NeMo causal x8": ([(3, 2, 3)] * 3, (8, -6)),
    "ESPnet conv2d": ([(3, 2, 0)] * 2, (4, 7)),
    "conv2d6": ([(3, 2, 0), (5, 3, 0)], (6, 11)),
    "wav2vec 2.0": ([(10, 5, 0)] + [(3, 2, 0)] * 4 + [(2, 2, 0)] * 2, (320, 400)),
    "none": ([], (1, 1)),
}


@pytest.mark.parametrize("name", STACKS)
def test_known_stacks(name: str) -> None:
    stages, expected = STACKS[name]
    rule = OutputFrames.from_convolutions(stages)
    assert (rule.factor, rule.first) == expected


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5)).filter(
            lambda s: s[2] < s[0] + s[1]
        ),
        max_size=4,
    ),
    st.integers(1, 500),
)
def test_any_stack_counts_as_its_convolutions(stages: list[tuple[int, int, int]], n_frames: int) -> None:
    count = n_frames
    for kernel, stride, padding in stages:
        count = max((count + padding - kernel) // stride + 1, 0)
        if count == 0:
            break
    rule = OutputFrames.from_convolutions(stages)
    if count:
        assert rule.n_valid(n_frames) == count
    assert rule.n_graph(n_frames) == max(rule.n_valid(n_frames), -(-n_frames // rule.factor))


def test_the_model_counts_the_same() -> None:
    """On tensors, as the network does."""
    from edge_asr.model.masks import valid_frames
    from edge_asr.model.subsampling.striding import subsampled_lens

    lens = torch.arange(0, 60)
    for factor, first in ((4, 1), (8, -6), (4, 7), (1, 1)):
        rule = OutputFrames(factor=factor, first=first)
        expected = [rule.n_valid(n) for n in lens.tolist()]
        assert subsampled_lens(lens, factor, first).tolist() == expected
        counts = valid_frames(lens, rule.n_graph(60), factor, first).sum(dim=1).tolist()
        assert counts[1:] == expected[1:]  # a row without frames may keep one, of padding alone


def test_wrong_numbers() -> None:
    with pytest.raises(ConfigError, match="factor of the output frames is 0"):
        OutputFrames(factor=0)
    with pytest.raises(ConfigError, match="whole number"):
        OutputFrames(factor=4, first=1.5)  # type: ignore[arg-type]
    assert OutputFrames.of(4) == OutputFrames(factor=4)
