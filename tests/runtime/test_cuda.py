"""The calls of libcuda: prototypes against NVIDIA's own cuda.h, and through ctypes into a compiled library.

Nothing here is evidence about a GPU: what the calls do on one is for scripts/gpu_acceptance.py to show.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_cuda import PRIMARY_CONTEXT, CudaError, FakeCuda
from pypi import package_folder

from edge_asr.errors import DeviceError
from edge_asr.runtime.engine import cuda
from edge_asr.runtime.engine.cuda import Cuda, query_gpu

HEADERS = {
    "12.2": "nvidia-cuda-runtime-cu12==12.2.140",
    "12.6": "nvidia-cuda-runtime-cu12==12.6.77",
    "13.0": "nvidia-cuda-runtime==13.0.96",
    "13.5": "nvidia-cuda-runtime==13.5.37",
}
"""JetPack's, and the newest."""

C_TYPES = {
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "unsigned char": ctypes.c_ubyte,
    "size_t": ctypes.c_size_t,
    "unsigned long long": ctypes.c_ulonglong,
    "CUdeviceptr": ctypes.c_uint64,
    "CUdevice": ctypes.c_int,
    "CUresult": ctypes.c_int,
    "CUdevice_attribute": ctypes.c_int,
    "CUstreamCaptureMode": ctypes.c_int,
    **dict.fromkeys(
        ["CUcontext", "CUevent", "CUstream", "CUgraph", "CUgraphExec", "void *", "void*"], ctypes.c_void_p
    ),
    "char *": ctypes.c_char_p,
}


def _declared(header: str, name: str) -> tuple[str, list[Any]]:
    """The name in the library, and the types of the parameters, of a function of cuda.h."""
    plain = name.removesuffix("_v2").removesuffix("WithFlags")
    # The first declaration is the current one; those of old versions stand at the end of the header.
    found = re.search(rf"CUresult CUDAAPI {plain}\(([^)]*)\)", header)
    assert found, f"cuda.h has no {plain}"
    macro = re.search(rf"#define {plain}\s+(?:__CUDA_API_PTSZ\()?(\w+)", header)
    types: list[Any] = []
    for parameter in found[1].split(","):
        text = re.sub(r"\bconst\b", "", parameter).strip()
        base, stars, _ = re.fullmatch(r"(.*?)\s*(\**)\s*(\w+)", text).groups()  # type: ignore[union-attr]
        if base in ("void", "char") and stars:
            base, stars = f"{base} *", stars[1:]
        kind: Any = C_TYPES[base]
        types.append(ctypes.POINTER(kind) if stars else kind)
    return macro[1] if macro else plain, types


@pytest.mark.parametrize("version", HEADERS)
def test_the_prototypes_are_those_of_cuda_h(version: str, pytestconfig: pytest.Config) -> None:
    folder = package_folder(pytestconfig, HEADERS[version])
    (path,) = folder.glob("nvidia/*/include/cuda.h")
    header = path.read_text(encoding="utf-8")
    for name, ours in cuda.PROTOTYPES.items():
        assert (name, list(ours)) == _declared(header, name)
    for name, value in cuda.CONSTANTS.items():
        (found,) = set(re.findall(rf"^\s*{name}\s*=\s*(\w+)", header, re.MULTILINE))
        assert int(found, 0) == value, name
    for code in CudaError:
        assert re.search(rf"^\s*{code.name}\s*=\s*{code.value},", header, re.MULTILINE), code
    assert len(cuda.PROTOTYPES) >= 25


# What goes in comes out again, beyond 32 bits, in the order of cuda.h; only a few calls keep a state.
ECHO = r"""
#include <stddef.h>
char *strncpy(char *to, const char *from, size_t n); /* a cross compiler may lack a libc */
typedef unsigned long long u64;
static u64 seen[4]; static int current, failing;
u64 *last(void) { return seen; }
int depth(void) { return current; }
void fail_with(int code) { failing = code; }
static int note(u64 a, u64 b, u64 c, u64 d) { seen[0] = a; seen[1] = b; seen[2] = c; seen[3] = d;
    int code = failing; failing = 0; return code; }
#define P(x) ((u64)(x))
int cuInit(unsigned f) { return 0; }
int cuGetErrorName(int c, const char **n)
{ *n = c == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL; return c != 700; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *d, int i) { *d = 40 + i; return 0; }
int cuDeviceGetName(char *n, int size, int d) { strncpy(n, d == 41 ? "Fake B" : "Fake A", size); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d)
{ *v = a == 75 ? 8 : a == 76 ? 7 : a == 18 ? 1 : 16; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)(0x700000000000 + d); return 0; }
int cuCtxPushCurrent_v2(void *c) { current += c == (void *)0x700000000028; return 0; }
int cuCtxPopCurrent_v2(void **c) { *c = (void *)0x700000000028; current--; return 0; }
int cuMemGetInfo_v2(size_t *f, size_t *t) { *f = 5000000000; *t = 8000000000; return 0; }
int cuMemAlloc_v2(u64 *p, size_t n) { *p = 0xfedcba9876543200; return note(n, 0, 0, 0); }
int cuMemFree_v2(u64 p) { return note(p, 0, 0, 0); }
int cuMemHostAlloc(void **p, size_t n, unsigned f)
{ *p = (void *)0x7fcba9876543200; return note(n, f, 0, 0); }
int cuMemFreeHost(void *p) { return note(P(p), 0, 0, 0); }
int cuMemcpyHtoDAsync_v2(u64 d, const void *s, size_t n, void *q) { return note(d, P(s), n, P(q)); }
int cuMemcpyDtoHAsync_v2(void *d, u64 s, size_t n, void *q) { return note(P(d), s, n, P(q)); }
int cuMemcpyDtoDAsync_v2(u64 d, u64 s, size_t n, void *q) { return note(d, s, n, P(q)); }
int cuMemsetD8Async(u64 d, unsigned char c, size_t n, void *q) { return note(d, c, n, P(q)); }
static int highest = -5;
void set_highest(int priority) { highest = priority; }
int cuCtxGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = highest; return note(0, 0, 0, 0); }
int cuStreamCreate(void **q, unsigned f) { *q = (void *)0x7eeeeeeeeee0; return note(f, 0, 0, 0); }
int cuStreamCreateWithPriority(void **q, unsigned f, int p)
{ *q = (void *)0x7eeeeeeeeee0; return note(f, p, 0, 0); }
int cuStreamDestroy_v2(void *q) { return note(P(q), 0, 0, 0); }
int cuEventCreate(void **e, unsigned f) { *e = (void *)0x7cccccccccc0; return note(f, 0, 0, 0); }
int cuEventRecord(void *e, void *q) { return note(P(e), P(q), 0, 0); }
int cuEventSynchronize(void *e) { return note(P(e), 0, 0, 0); }
int cuEventDestroy_v2(void *e) { return note(P(e), 0, 0, 0); }
int cuStreamSynchronize(void *q) { return note(P(q), 0, 0, 0); }
int cuStreamBeginCapture_v2(void *q, int m) { return note(P(q), m, 0, 0); }
int cuStreamEndCapture(void *q, void **g) { *g = (void *)0x7aaaaaaaaaa0; return note(P(q), 0, 0, 0); }
int cuGraphInstantiateWithFlags(void **e, void *g, u64 f)
{ *e = (void *)0x7bbbbbbbbbb0; return note(P(g), f, 0, 0); }
int cuGraphLaunch(void *e, void *q) { return note(P(e), P(q), 0, 0); }
int cuGraphDestroy(void *g) { return note(P(g), 0, 0, 0); }
int cuGraphExecDestroy(void *e) { return note(P(e), 0, 0, 0); }
"""
DEVICE, HOST, STREAM, BIG = 0xFEDCBA9876543200, 0x7FCBA9876543200, 0x7EEEEEEEEEE0, 5_000_000_000


def _find_compiler(machine: str) -> str | None:
    """A compiler for a machine; in an emulated one, cc may be that of the machine around it."""
    for name in (f"{machine}-linux-gnu-gcc", "cc", "gcc"):
        path = shutil.which(name)
        if path is not None:
            made_for = subprocess.run([path, "-dumpmachine"], capture_output=True, text=True).stdout
            if made_for.split("-")[0] == machine:
                return path
    return None


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A compiled libcuda, which the real `load_driver` opens."""
    compiler = _find_compiler(platform.machine())
    if compiler is None:
        pytest.skip(f"needs a C compiler for {platform.machine()} to make a libcuda")
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "echo.c").write_text(ECHO)
    library = folder / "libcuda.so.1"
    subprocess.run(
        [compiler, "-w", "-shared", "-nostdlib", "-fPIC", "-o", library, folder / "echo.c"], check=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda name, real=ctypes.CDLL: real(str(folder / name)))
        cuda.load_driver.cache_clear()
        opened = cuda.load_driver()
        opened.last.restype = ctypes.POINTER(ctypes.c_ulonglong)
        yield opened
        cuda.load_driver.cache_clear()


def test_arguments_and_results_keep_all_their_bits(echo: Any) -> None:
    gpu = Cuda()
    assert gpu.memory() == (BIG, 8_000_000_000)
    assert (gpu.allocate(BIG), gpu.allocate_pinned(BIG), gpu.create_stream()) == (DEVICE, HOST, STREAM)
    calls: list[tuple[Any, list[int]]] = [
        (lambda: gpu.allocate(BIG), [BIG]),
        (lambda: gpu.allocate_pinned(BIG), [BIG, 0]),
        (lambda: gpu.free(DEVICE), [DEVICE]),
        (lambda: gpu.free_pinned(HOST), [HOST]),
        (lambda: gpu.create_stream(), [1, 2**64 - 5]),
        (lambda: gpu.copy_to_device(DEVICE, HOST, BIG, STREAM), [DEVICE, HOST, BIG, STREAM]),
        (lambda: gpu.copy_to_host(HOST, DEVICE, BIG, STREAM), [HOST, DEVICE, BIG, STREAM]),
        (lambda: gpu.copy_on_device(DEVICE, DEVICE + 1, BIG, STREAM), [DEVICE, DEVICE + 1, BIG, STREAM]),
        (lambda: gpu.fill(DEVICE, 255, BIG, STREAM), [DEVICE, 255, BIG, STREAM]),
        (lambda: gpu.synchronize(STREAM), [STREAM]),
        (lambda: gpu.launch(HOST, STREAM), [HOST, STREAM]),
        (lambda: gpu.destroy_graph(HOST), [HOST]),
        (lambda: gpu.destroy_stream(STREAM), [STREAM]),
    ]
    for call, seen in calls:
        call()
        assert echo.last()[: len(seen)] == seen
    order: list[list[int]] = []
    assert gpu.capture(STREAM, lambda: order.append(echo.last()[:2])) == 0x7BBBBBBBBBB0
    assert order == [[STREAM, 1]]  # thread-local capture had begun
    assert echo.last()[0] == 0x7AAAAAAAAAA0  # the recording itself is gone, only its executable stays


def test_a_device_of_one_priority_has_a_plain_stream(echo: Any) -> None:
    echo.set_highest(0)
    try:
        assert Cuda().create_stream() == STREAM
        assert echo.last()[:2] == [1, 0]
    finally:
        echo.set_highest(-5)


@pytest.mark.parametrize(("priorities", "chosen"), [((0, -5), -5), ((0, -1), -1), ((0, 0), 0)])
def test_a_stream_has_the_highest_priority(
    priorities: tuple[int, int], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCuda()
    fake.install_cuda(monkeypatch)
    fake.priorities = priorities
    gpu = Cuda()
    with gpu.current_device():
        stream = gpu.create_stream()
        assert fake.streams[stream].priority == chosen
        gpu.destroy_stream(stream)
        fake.fail("cuStreamCreate")
        with pytest.raises(DeviceError, match="CUDA_ERROR_OUT_OF_MEMORY"):
            gpu.create_stream()
    fake.assert_released()


def test_the_device_of_an_ordinal(echo: Any) -> None:
    found = query_gpu(1)
    assert found == cuda.Gpu(
        name="Fake B", compute_capability="8.7", multiprocessors=16, integrated=True, driver="12.6"
    )
    with Cuda(0).current_device():
        assert echo.depth() == 1
    assert echo.depth() == 0
    for ordinal in (2, -1):
        with pytest.raises(
            DeviceError, match=rf"sees 2 GPUs here, so there is no GPU {ordinal}; check CUDA_V"
        ):
            Cuda(ordinal)


@pytest.mark.parametrize(
    ("code", "told"), [(700, "CUDA_ERROR_ILLEGAL_ADDRESS"), (65_001, "an unknown error")]
)
def test_an_error_is_named_even_if_the_driver_is_newer(echo: Any, code: int, told: str) -> None:
    gpu = Cuda()
    echo.fail_with(code)
    with pytest.raises(DeviceError, match=rf"cuMemFree_v2: CUDA failed with {told} \({code}\); .*doctor"):
        gpu.free(DEVICE)


@pytest.mark.parametrize("library", ["missing", "old"])
def test_no_driver_or_an_old_one(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"libcuda.so.1: undefined symbol: {name}")

    def load(name: str) -> Any:
        if library == "missing":
            raise OSError(f"{name}: cannot open shared object file")
        return Old()

    monkeypatch.setattr(ctypes, "CDLL", load)
    cuda.load_driver.cache_clear()
    told = "libcuda.so.1: cannot open .*; install the NVIDIA" if library == "missing" else "too old .*CUDA 12"
    with pytest.raises(DeviceError, match=told):
        Cuda()
    assert query_gpu() is None


@pytest.mark.parametrize("failing", [None, "copy on device", "cuStreamEndCapture"])
def test_a_failed_recording_leaves_nothing(failing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    fake.install_cuda(monkeypatch)
    gpu = Cuda()
    with gpu.current_device():
        stream, memory = gpu.create_stream(), gpu.allocate(64)

        def work() -> None:
            gpu.copy_on_device(memory, memory + 32, 32, stream)
            if failing is None:
                raise KeyboardInterrupt

        if failing is not None:
            fake.fail(failing)
        with pytest.raises(KeyboardInterrupt if failing is None else DeviceError):
            gpu.capture(stream, work)
        gpu.fill(memory, 7, 64, stream)
        gpu.synchronize(stream)  # the stream is usable again
        assert ctypes.string_at(memory, 64) == bytes([7] * 64)
        gpu.free(memory)
        gpu.destroy_stream(stream)
    fake.assert_released()


def test_each_thread_has_the_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    fake.install_cuda(monkeypatch)
    gpu = Cuda()
    found: list[list[int]] = []

    def work() -> None:
        with gpu.current_device():
            found.append(list(fake.contexts))
        found.append(list(fake.contexts))

    thread = threading.Thread(target=work)
    with gpu.current_device():
        thread.start()
        thread.join()
    assert found == [[PRIMARY_CONTEXT], []]
