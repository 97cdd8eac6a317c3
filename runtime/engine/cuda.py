"""The few CUDA calls that engines need, over cuda-bindings, with every error code checked.

`Cuda` wraps the runtime API on one device: memory, one kind of stream, copies, graphs. Addresses are plain
integers; the caller that allocates also frees. `query_gpu` asks the driver which GPU exists. cuda-bindings is
imported on use, so this file costs nothing on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edge_asr.errors import DeviceError, require

DEVICE_ORDINAL = 0
"""The first GPU that CUDA_VISIBLE_DEVICES lets this process see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as the CUDA driver describes it; `driver` is the newest CUDA version that it supports, "12.6"."""

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str


def query_gpu() -> Gpu | None:
    """Return the GPU that engines run on; None without a GPU, a driver or cuda-bindings."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        check(driver.cuInit(0))
        version = check(driver.cuDriverGetVersion())
        device = check(driver.cuDeviceGet(DEVICE_ORDINAL))
        name = check(driver.cuDeviceGetName(256, device))
        attribute = driver.CUdevice_attribute
        major, minor, multiprocessors = (
            check(driver.cuDeviceGetAttribute(which, device))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )
        )
    except (DeviceError, RuntimeError):  # cuda-bindings raises RuntimeError if libcuda is missing
        return None
    return Gpu(
        name=name.split(b"\0", 1)[0].decode(errors="replace").strip(),
        compute_capability=f"{major}.{minor}",
        multiprocessors=multiprocessors,
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def check(returned: tuple[Any, ...]) -> Any:
    """Return what a call of cuda-bindings returned beside its error code: None, one value or a tuple.

    Raises:
        DeviceError: the code is not success.
    """
    code, *values = returned
    if int(code) != 0:
        raise DeviceError(
            f"CUDA failed with {code.name} ({int(code)}); run `edge-asr doctor` to see driver and GPU"
        )
    if len(values) == 1:
        return values[0]
    return tuple(values) if values else None


class Cuda:
    """The CUDA runtime API on the device of engines. It keeps no state and may be used from several threads.

    Args:
        extra: the extra of edge-asr that installs cuda-bindings, named in the message if it is missing.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        DeviceError: no usable GPU or driver.
    """

    def __init__(self, *, extra: str = "tensorrt") -> None:
        self._api = require("cuda.bindings.runtime", extra=extra)
        count = self._call("cudaGetDeviceCount")
        if count < 1:
            raise DeviceError("CUDA sees no GPU; check CUDA_VISIBLE_DEVICES, or run `edge-asr doctor`")

    @contextlib.contextmanager
    def current_device(self) -> Iterator[None]:
        """Make the device current in this thread, and restore the previous one afterwards."""
        before = self._call("cudaGetDevice")
        if before == DEVICE_ORDINAL:
            yield
            return
        self._call("cudaSetDevice", DEVICE_ORDINAL)
        try:
            yield
        finally:
            self._call("cudaSetDevice", before)

    def allocate(self, n_bytes: int) -> int:
        """Allocate device memory, aligned to at least 256 bytes, and return its address."""
        return int(self._call("cudaMalloc", n_bytes))

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cudaFree", address)

    def allocate_pinned(self, n_bytes: int) -> int:
        """Allocate page-locked host memory, and return its address."""
        return int(self._call("cudaHostAlloc", n_bytes, self._api.cudaHostAllocDefault))

    def free_pinned(self, address: int) -> None:
        """Free page-locked memory."""
        self._call("cudaFreeHost", address)

    def create_stream(self) -> Any:
        """Create a stream that does not wait for the default stream."""
        return self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait for all work of a stream."""
        self._call("cudaStreamSynchronize", stream)

    def copy_to_device(self, device: int, host: int, n_bytes: int, stream: Any) -> None:
        """Queue a copy from page-locked memory to the device."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host, n_bytes, kind, stream)

    def copy_to_host(self, host: int, device: int, n_bytes: int, stream: Any) -> None:
        """Queue a copy from the device to page-locked memory."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host, device, n_bytes, kind, stream)

    def capture(self, stream: Any, queue_work: Callable[[], None]) -> Any:
        """Record what `queue_work` queues on `stream`, without running it, as a graph for `launch`.

        Only calls of this thread are watched, so other threads may use CUDA meanwhile. On an exception the
        recording is ended and discarded, and the stream is as before.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            queue_work()
        except BaseException:
            code, recorded = self._api.cudaStreamEndCapture(stream)
            if int(code) == 0:
                self._call("cudaGraphDestroy", recorded)
            raise
        recorded = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", recorded, 0)
        finally:
            self._call("cudaGraphDestroy", recorded)

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue a recorded graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return check(getattr(self._api, name)(*arguments))
        except DeviceError as error:
            raise DeviceError(f"{name}: {error}") from None
        except RuntimeError as error:  # no libcuda
            raise DeviceError(f"{name}: {error}; run `edge-asr doctor` to see driver and GPU") from error
