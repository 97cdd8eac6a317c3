"""The shapes that models run in on a GPU: lengths on a coarse grid, and the profile for a batch.

Kernels for half and INT8 want a number of frames that is a multiple of 16 inside the encoder, and shapes that
repeat can be recorded and tuned. So lengths are padded to 16, 32, 48, 64, 96, 128, 192, 256, ... output
frames: at most half more, and where that is much, a GPU waits for launches and not for numbers. `length` does
not change, and the graphs of a bundle mask the frames after it.
This file has integers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_asr.frames import OutputFrames

if TYPE_CHECKING:  # a CPU uses the grid for nothing, and must not load what engines need
    from edge_asr.runtime.engine.sidecar import EngineProfile

_UNIT = 16


def grid_frames(n_frames: int, rule: OutputFrames) -> int:
    """Round feature frames up to the grid: the most frames that give one of its counts of output frames."""
    units = -(-rule.n_graph(n_frames) // _UNIT)
    power = 1 << (units - 1).bit_length()
    between = power * 3 // 4
    n_out = _UNIT * (between if power > 2 and between >= units else power)
    return rule.factor * n_out + min(rule.first, 1) - 1


def grid_up_to(n_frames: int, rule: OutputFrames) -> list[int]:
    """List the lengths of the grid up to the first that holds `n_frames`."""
    lengths = [grid_frames(1, rule)]
    while lengths[-1] < n_frames:
        lengths.append(grid_frames(lengths[-1] + 1, rule))
    return lengths


def choose_profile(profiles: Sequence[EngineProfile], n_frames: int, n_rows: int) -> int | None:
    """Choose the index of the profile for a batch; None if no profile accepts as many frames.

    It is the profile with the fewest sufficient frames; among equals the one with the fewest sufficient rows,
    or else with the most rows, because the batch is then run in parts.
    """
    enough = [i for i, profile in enumerate(profiles) if profile.max_frames >= n_frames]
    if not enough:
        return None

    def cost(index: int) -> tuple[int, bool, int]:
        profile = profiles[index]
        split = profile.max_batch < n_rows
        return profile.max_frames, split, -profile.max_batch if split else profile.max_batch

    return min(enough, key=cost)
