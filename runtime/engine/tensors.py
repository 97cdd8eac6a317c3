"""The tensors of our graphs as an engine has them: their types, shapes of a run, and memory.

What this file does not do: speak to TensorRT (deserialized.py) or allocate (loaded.py).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Dims = tuple[int, ...]

FEATURES = "audio_signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShape:
    """The exact shape of a run.

    Attributes:
        profile: its index.
        n_batch, n_frames: rows and feature frames.
        swapped: whether tensors that change places (`TensorSpec.swaps_with`) have done so.
    """

    profile: int
    n_batch: int
    n_frames: int
    swapped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor of our graphs.

    Attributes:
        dtypes: NumPy types by the name of TensorRT's. The parser of TensorRT 8.6 turns int64 into int32.
        is_input: whether it is an input.
        dims: shape of an input for a run; None for an output, whose shape TensorRT infers.
        on_host: whether its content comes from the host, or goes there, in every run.
        swaps_with: the tensor of the same shape whose memory it has in a swapped run; None keeps its own.
    """

    dtypes: Mapping[str, type[np.generic]]
    dims: Callable[[RunShape], Dims] | None
    on_host: bool = True
    swaps_with: str | None = None

    @property
    def is_input(self) -> bool:
        """Tell whether it is an input."""
        return self.dims is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Device memory of one tensor, and page-locked memory of the same size where the host uses it.

    Attributes:
        host: address on the host; 0 without one, the device's where both are one memory.
        device: address on the device.
    """

    host: int
    device: int

    def view(self, shape: Dims, dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Return the beginning of the page-locked memory as an array."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        raw = memoryview((ctypes.c_uint8 * n_bytes).from_address(self.host))
        return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
