"""The few CUDA calls that engines need, over the driver's own library (libcuda.so.1), each error checked.

`Cuda` wraps the driver API on one device: memory, one kind of stream, copies, graphs. Addresses and handles
are plain integers; the caller that allocates also frees. `query_gpu` asks which GPU exists. The library comes
with the driver, so nothing is installed for it, no version has to match, and ctypes releases the GIL in every
call. It is opened on use: this file costs nothing on a machine without a GPU.

Everything happens in the device's primary context, which is also that of TensorRT and PyTorch (their runtime
API binds it). It lives as long as the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from dataclasses import dataclass
from typing import Any

from edge_asr.errors import DeviceError

DEVICE_ORDINAL = 0
"""The first GPU that CUDA_VISIBLE_DEVICES lets this process see."""

# As cuda.h declares them from CUDA 12.0 on: devices and enumerators are int, CUdeviceptr is 64 bits wide,
# contexts, streams, graphs and host memory are pointers. The names are those in the library.
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuCtxGetStreamPriorityRange": (POINTER(c_int), POINTER(c_int)),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamCreateWithPriority": (POINTER(c_void_p), c_uint, c_int),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
}
# Enumerators of cuda.h.
CONSTANTS = {
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 16,
    "CU_DEVICE_ATTRIBUTE_INTEGRATED": 18,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75,
    "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
    "CU_STREAM_NON_BLOCKING": 1,
    "CU_EVENT_BLOCKING_SYNC": 1,
    "CU_EVENT_DISABLE_TIMING": 2,
    "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as the CUDA driver describes it.

    Attributes:
        name, compute_capability: "Orin", "8.7".
        multiprocessors: how many the power mode leaves on.
        integrated: it shares the memory of the processor, as on a Jetson.
        driver: the newest CUDA version that the driver supports, "12.6".
    """

    name: str
    compute_capability: str
    multiprocessors: int
    integrated: bool
    driver: str


@functools.cache
def load_driver() -> Any:
    """Open libcuda, with the types of every call set.

    Raises:
        DeviceError: it is not installed, or too old.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
        for name, types in PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = types, c_int
    except OSError as error:
        raise DeviceError(
            f"the CUDA driver's library does not load ({error}); install the NVIDIA driver, or give a "
            "container --gpus all (Jetson: --runtime nvidia)"
        ) from error
    except AttributeError as error:
        raise DeviceError(
            f"the CUDA driver is too old ({error}); install one for CUDA 12 or later"
        ) from error
    return library


def query_gpu(ordinal: int = DEVICE_ORDINAL) -> Gpu | None:
    """Return the GPU of an ordinal; None without such a GPU, or without a driver."""
    try:
        _call("cuInit", 0)
        version = _get("cuDriverGetVersion")
        device = _get("cuDeviceGet", ordinal)
        name = ctypes.create_string_buffer(256)
        _call("cuDeviceGetName", name, len(name), device)
        multiprocessors, integrated, major, minor = (
            _get("cuDeviceGetAttribute", CONSTANTS[f"CU_DEVICE_ATTRIBUTE_{which}"], device)
            for which in (
                "MULTIPROCESSOR_COUNT",
                "INTEGRATED",
                "COMPUTE_CAPABILITY_MAJOR",
                "COMPUTE_CAPABILITY_MINOR",
            )
        )
    except DeviceError:
        return None
    return Gpu(
        name=name.value.decode(errors="replace").strip(),
        compute_capability=f"{major}.{minor}",
        multiprocessors=multiprocessors,
        integrated=bool(integrated),
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


class Cuda:
    """The CUDA driver on one device. It may be used from several threads, each within `current_device`.

    Args:
        ordinal: which of the GPUs that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        DeviceError: no usable driver, or no such GPU.
    """

    def __init__(self, ordinal: int = DEVICE_ORDINAL) -> None:
        _call("cuInit", 0)
        count = _get("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise DeviceError(
                f"CUDA sees {count} GPUs here, so there is no GPU {ordinal}; "
                "check CUDA_VISIBLE_DEVICES, or run `edge-asr doctor`"
            )
        self._context = _get("cuDevicePrimaryCtxRetain", _get("cuDeviceGet", ordinal))

    @contextlib.contextmanager
    def current_device(self) -> Iterator[None]:
        """Make the device current in this thread, and restore afterwards what was current before.

        Every call below needs it, and so does everything of TensorRT: a fresh thread has no current device.
        """
        _call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            _get("cuCtxPopCurrent_v2")

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device's memory."""
        free, total = c_size_t(), c_size_t()
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, n_bytes: int) -> int:
        """Allocate device memory, aligned to at least 256 bytes, and return its address."""
        return _get("cuMemAlloc_v2", n_bytes)

    def free(self, address: int) -> None:
        """Free device memory."""
        _call("cuMemFree_v2", address)

    def allocate_pinned(self, n_bytes: int) -> int:
        """Allocate page-locked host memory, and return its address."""
        return _get("cuMemHostAlloc", n_bytes, 0)

    def free_pinned(self, address: int) -> None:
        """Free page-locked memory."""
        _call("cuMemFreeHost", address)

    def create_stream(self) -> int:
        """Create a stream that does not wait for the default stream, of the highest priority that there is.

        So speech goes ahead of other work of this process on the GPU. Where the device has one priority, the
        driver gives the same number as lowest and highest.
        """
        lowest, highest = c_int(), c_int()
        _call("cuCtxGetStreamPriorityRange", ctypes.byref(lowest), ctypes.byref(highest))
        if lowest.value == highest.value:
            return _get("cuStreamCreate", CONSTANTS["CU_STREAM_NON_BLOCKING"])
        return _get("cuStreamCreateWithPriority", CONSTANTS["CU_STREAM_NON_BLOCKING"], highest.value)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        _call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        """Wait for all work of a stream."""
        _call("cuStreamSynchronize", stream)

    def create_event(self) -> int:
        """Create an event that a thread waits for asleep."""
        return _get(
            "cuEventCreate", CONSTANTS["CU_EVENT_BLOCKING_SYNC"] | CONSTANTS["CU_EVENT_DISABLE_TIMING"]
        )

    def destroy_event(self, event: int) -> None:
        """Destroy an event."""
        _call("cuEventDestroy_v2", event)

    def synchronize_asleep(self, stream: int, event: int) -> None:
        """Wait for all work of a stream as `synchronize` does, without keeping a core busy meanwhile."""
        _call("cuEventRecord", event, stream)
        _call("cuEventSynchronize", event)

    def copy_to_device(self, device: int, host: int, n_bytes: int, stream: int) -> None:
        """Queue a copy from page-locked memory to the device."""
        _call("cuMemcpyHtoDAsync_v2", device, host, n_bytes, stream)

    def copy_to_host(self, host: int, device: int, n_bytes: int, stream: int) -> None:
        """Queue a copy from the device to page-locked memory."""
        _call("cuMemcpyDtoHAsync_v2", host, device, n_bytes, stream)

    def copy_on_device(self, target: int, source: int, n_bytes: int, stream: int) -> None:
        """Queue a copy within the device."""
        _call("cuMemcpyDtoDAsync_v2", target, source, n_bytes, stream)

    def fill(self, device: int, value: int, n_bytes: int, stream: int) -> None:
        """Queue setting every byte of device memory to `value`."""
        _call("cuMemsetD8Async", device, value, n_bytes, stream)

    def capture(self, stream: int, queue_work: Callable[[], None]) -> int:
        """Record what `queue_work` queues on `stream`, without running it, as a graph for `launch`.

        Only calls of this thread are watched, so other threads may use CUDA meanwhile. On an exception the
        recording is ended and discarded, and the stream is as before.
        """
        _call("cuStreamBeginCapture_v2", stream, CONSTANTS["CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"])
        recorded = c_void_p()
        try:
            queue_work()
        except BaseException:
            with contextlib.suppress(DeviceError):  # a recording that CUDA has given up already
                _call("cuStreamEndCapture", stream, ctypes.byref(recorded))
            if recorded.value:
                _call("cuGraphDestroy", recorded.value)
            raise
        _call("cuStreamEndCapture", stream, ctypes.byref(recorded))
        try:
            return _get("cuGraphInstantiateWithFlags", recorded.value, 0)
        finally:
            _call("cuGraphDestroy", recorded.value)

    def launch(self, graph: int, stream: int) -> None:
        """Queue a recorded graph."""
        _call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph."""
        _call("cuGraphExecDestroy", graph)


def _call(name: str, *arguments: Any) -> None:
    """Call the driver.

    Raises:
        DeviceError: there is no driver, or it reports an error.
    """
    driver = load_driver()
    code = getattr(driver, name)(*arguments)
    if code:
        text = c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(text))  # leaves null for a code that this driver lacks
        called = (text.value or b"an unknown error").decode(errors="replace")
        raise DeviceError(
            f"{name}: CUDA failed with {called} ({code}); `edge-asr doctor` shows driver and GPU"
        )


def _get(name: str, *arguments: Any) -> int:
    """Call the driver, and return what it writes to its first argument."""
    result = PROTOTYPES[name][0]._type_()
    _call(name, ctypes.byref(result), *arguments)
    return result.value or 0
