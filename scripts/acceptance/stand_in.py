"""Stands in for TensorRT with engines that queue PyTorch's work, so that our CUDA code meets a real driver.

Engines, contexts and their rules are the fakes of tests/runtime; only the execution is another: it computes,
on the stream and the addresses that it is given, a strided copy, a product and a mask by the lengths, none
of which allocates (a matrix product would keep a workspace for each stream, which looks like a leak of
ours). It says nothing about TensorRT or any model. In a rehearsal the driver is the tests' fake, and PyTorch
runs on the CPU.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
            views = self._views()
            gpu.streams[stream_handle].push(lambda replayed: compute(views))
            return True
        try:
            stream = torch.cuda.ExternalStream(stream_handle)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream), torch.inference_mode():
                if gpu.breaks_capture and torch.cuda.is_current_stream_capturing():
                    gpu.breaks_capture = False
                    torch.cuda.current_stream().synchronize()
                compute(self._views())
        except RuntimeError as error:
            self._engine._logger.log(fake.Severity.ERROR, str(error))
            return False
        return True

    def _views(self) -> dict[str, torch.Tensor]:
        rows, n_mels, frames = self._shapes["audio_signal"]
        _, n_out, n_classes = self.get_tensor_shape("logprobs")
        assert self._activations is not None
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
        device, made = self._gpu.device, self.__dict__.setdefault("_made", {})
        key = tuple(wanted.values())
        if key not in made:
            views = {name: tensor_at(*where, device) for name, where in wanted.items()}
            factor = self._engine._plan["factor"]
            made[key] = views | _constants(n_classes, n_out, factor, device)
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
