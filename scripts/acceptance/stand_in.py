"""Stands in for TensorRT with engines that queue PyTorch's work, so that our CUDA code meets a real driver.

Engines, contexts and their rules are the fakes of tests/runtime; only the execution is another: it computes,
on the stream and the addresses that it is given, a strided copy, a product and a mask by the lengths; as a
step of streams, running sums in the caches. None of it allocates (a matrix product would keep a workspace for
each stream, which looks like a leak of ours). It says nothing about TensorRT or any model. In a rehearsal the
driver is the tests' fake, and PyTorch runs on the CPU.
"""

from __future__ import annotations

import copy
import ctypes
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.runtime.engine.cuda import query_gpu

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "runtime"))

import fake_tensorrt as fake  # type: ignore[import-not-found]

if TYPE_CHECKING:
    import torch

F32Array = npt.NDArray[np.float32]
SCRATCH_BYTES = 64 << 20


class _EveryStream:
    def __contains__(self, handle: int) -> bool:
        return True


class StandInGpu(fake.FakeGpu):  # type: ignore[misc]
    """What the fakes ask of their GPU: a real one, or in a rehearsal the fake one.

    Attributes:
        device: "cuda" or "cpu".
        breaks_capture: makes the next recorded execution wait for the GPU, which CUDA forbids there.
    """

    def __init__(self, device: str) -> None:
        super().__init__("10")
        self.device = device
        self.breaks_capture = False
        gpu = query_gpu() if device == "cuda" else None
        if gpu is not None:
            self.name, self.multiprocessors = gpu.name, gpu.multiprocessors
            self.capability = tuple(map(int, gpu.compute_capability.split(".")))
            self.streams = _EveryStream()

    def put_in_place(self) -> None:
        """Make `import tensorrt` find the stand-in; in a rehearsal, also libcuda the fake."""
        if self.device == "cpu":
            self.install_cuda(SimpleNamespace(setattr=setattr))
        fake.ENGINES["10"] = TorchEngine
        operator.setitem(sys.modules, "tensorrt", fake.tensorrt_module(self, "tensorrt"))

    def check_range(self, kind: str, address: int, n_bytes: int) -> None:
        """Check addresses, which only the fake driver knows."""
        if self.device == "cpu":
            super().check_range(kind, address, n_bytes)


class TorchEngine(fake.FakeEngine10):  # type: ignore[misc]
    """An engine whose contexts execute with PyTorch."""

    device_memory_size_v2 = SCRATCH_BYTES

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """As TensorRT 10 and later have it."""
        return SCRATCH_BYTES

    def _new_context(self, contexts: type[fake.FakeContext]) -> Any:
        return super()._new_context(TorchContext)


class TorchContext(fake.FakeContext):  # type: ignore[misc]
    """Queues the work. Its tensors are made in the first, ordinary run of a shape; a recording makes none."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue one execution, or tell TensorRT's log why not and return False."""
        import torch

        gpu = self._gpu
        if gpu.fails("execute"):
            return False
        if gpu.device == "cpu":
            work = self._work()
            gpu.streams[stream_handle].push(lambda replayed: work())
            return True
        try:
            stream = torch.cuda.ExternalStream(stream_handle)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream), torch.inference_mode():
                if gpu.breaks_capture and torch.cuda.is_current_stream_capturing():
                    gpu.breaks_capture = False
                    torch.cuda.current_stream().synchronize()
                self._work()()
        except RuntimeError as error:
            self._engine._logger.log(fake.Severity.ERROR, str(error))
            return False
        return True

    def _work(self) -> Callable[[], None]:
        assert self._activations is not None
        if STREAM_INPUTS[2] in self._engine._tensors:
            views = self._views_of_stream()
            return lambda: compute_step(views)
        views = self._views()
        return lambda: compute(views)

    def _views_of_stream(self) -> dict[str, torch.Tensor]:
        rows = self._shapes["audio_signal"][0]
        types = {"float32": "<f4", "int64": "<i8"}
        scratch, size = self._activations
        assert 16 * rows <= size
        wanted = {
            name: (self._addresses[name], self.get_tensor_shape(name), types[self._engine._tensors[name][0]])
            for name in self._engine._tensors
        }
        wanted |= {
            "mask": (scratch, (rows,), "|b1"),
            "live": (scratch + 4 * rows, (rows,), "<f4"),
            "gain": (scratch + 8 * rows, (rows,), "<f4"),
        }
        return self._made(
            wanted, lambda: {"weight": _step_weight(wanted[STREAM_OUTPUTS[0]][1], self._gpu.device)}
        )

    def _views(self) -> dict[str, torch.Tensor]:
        rows, n_mels, frames = self._shapes["audio_signal"]
        _, n_out, n_classes = self.get_tensor_shape("logprobs")
        scratch, size = self._activations
        mask = scratch + 4 * rows * n_out * n_classes
        assert mask + rows * n_out <= scratch + size
        wanted: dict[str, tuple[int, tuple[int, ...], str]] = {
            "features": (self._addresses["audio_signal"], (rows, n_mels, frames), "<f4"),
            "lens": (self._addresses["length"], (rows,), "<i8"),
            "out": (self._addresses["logprobs"], (rows, n_out, n_classes), "<f4"),
            "scratch": (scratch, (rows, n_out, n_classes), "<f4"),
            "mask": (mask, (rows, n_out), "|b1"),
        }
        factor = self._engine._plan["factor"]
        return self._made(wanted, lambda: _constants(n_classes, n_out, factor, self._gpu.device))

    def _made(
        self,
        wanted: dict[str, tuple[int, tuple[int, ...], str]],
        constants: Callable[[], dict[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """Return tensors at the addresses of a run, made once: a recording may not make any."""
        made = self.__dict__.setdefault("_tensors_made", {})
        key = tuple(wanted.values())
        if key not in made:
            made[key] = {n: tensor_at(*where, self._gpu.device) for n, where in wanted.items()} | constants()
        found: dict[str, torch.Tensor] = made[key]
        return found


def compute(views: dict[str, torch.Tensor]) -> None:
    """Queue the stand-in's work on the current stream, without allocating."""
    import torch

    features, out = views["features"], views["out"]
    factor = int(views["factor"])
    n_mels, n_classes = features.shape[1], out.shape[2]
    for begin in range(0, n_classes, n_mels):  # the bands again and again, until every class has one
        n = min(n_mels, n_classes - begin)
        views["scratch"][:, :, begin : begin + n].copy_(features[:, :n, ::factor].transpose(1, 2))
    torch.mul(views["scratch"], views["weight"], out=out)
    torch.lt(views["starts"], views["lens"][:, None], out=views["mask"])
    out.mul_(views["mask"][:, :, None])


def compute_step(views: dict[str, torch.Tensor]) -> None:
    """Queue a step of streams, without allocating: caches halve and add, where a window is not empty.

    With x the first number of a window, the first two caches c become c / 2 + x, the third grows by 1, and
    the log-probs are x + the first number of the first cache, times a weight.
    """
    import torch

    features, length = views["audio_signal"], views["length"]
    taken, given = ([views[name] for name in names[2:]] for names in (STREAM_INPUTS, STREAM_OUTPUTS))
    torch.gt(length, 0, out=views["mask"])
    views["live"].copy_(views["mask"])
    torch.mul(views["live"], features[:, 0, 0], out=views["gain"])
    first = taken[0].flatten(1)[:, 0]
    torch.mul(views["weight"], (views["gain"])[:, None, None], out=views[STREAM_OUTPUTS[0]])
    views[STREAM_OUTPUTS[0]].addcmul_(views["weight"], first[:, None, None])
    torch.mul(length, 0, out=views[STREAM_OUTPUTS[1]])
    views[STREAM_OUTPUTS[1]].add_(views["mask"], alpha=views[STREAM_OUTPUTS[0]].shape[1])
    torch.add(taken[2], views["mask"], out=given[2])
    views["live"].mul_(-0.5).add_(1)
    for cache, following in zip(taken[:2], given[:2], strict=True):
        ones = [1] * (cache.ndim - 1)
        torch.mul(cache, views["live"].view(-1, *ones), out=following)
        following.add_(views["gain"].view(-1, *ones))


class StepOnHost:
    """Computes on the host what `compute_step` gives for one stream, step by step."""

    def __init__(self, n_frames: int, n_classes: int) -> None:
        self._weight = _weight(n_classes) * np.ones((n_frames, 1), np.float32)
        self.cache, self.count = np.float32(0), 0

    def step(self, window: F32Array, length: int) -> F32Array:
        """Take a window, [T, F]; return its log-probs, or none for an empty one."""
        if length < 1:
            return self._weight[:0]
        log_probs: F32Array = self._weight * (window[0, 0] + self.cache)
        self.cache = self.cache / np.float32(2) + window[0, 0]
        self.count += 1
        return log_probs

    def fork(self) -> StepOnHost:
        """Return a copy."""
        return copy.copy(self)


def expected(features: F32Array, lens: npt.NDArray[np.int64], n_classes: int, factor: int) -> F32Array:
    """Compute on the host what `compute` gives: [B, T, F] -> [B, ceil(T / factor), n_classes]."""
    picked = np.take(features[:, ::factor], np.arange(n_classes), axis=2, mode="wrap")
    valid = np.arange(picked.shape[1]) * factor < lens[:, None]
    result: F32Array = picked * _weight(n_classes) * valid[..., None]
    return result


def tensor_at(address: int, shape: tuple[int, ...], typestr: str, device: str) -> torch.Tensor:
    """Return memory at an address as a tensor, without a copy."""
    import torch

    if device == "cuda":
        interface = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}
        return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
    dtype = np.dtype(typestr)
    raw = (ctypes.c_uint8 * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    return torch.from_numpy(np.frombuffer(memoryview(raw), dtype).reshape(shape))


def _weight(n_classes: int) -> F32Array:
    weight: F32Array = np.random.default_rng(0).normal(0, 1, n_classes).astype(np.float32)
    return weight


def _step_weight(shape: tuple[int, ...], device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(_weight(shape[2])).to(device).expand(1, *shape[1:])


_CONSTANTS: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}


def _constants(n_classes: int, n_out: int, factor: int, device: str) -> dict[str, torch.Tensor]:
    import torch

    key = (n_classes, n_out, factor)
    if key not in _CONSTANTS:
        _CONSTANTS[key] = {
            "weight": torch.from_numpy(_weight(n_classes)).to(device),
            "starts": (torch.arange(n_out) * factor).to(device),
            "factor": torch.tensor(factor),
        }
    return _CONSTANTS[key]
