"""The few CUDA calls that engines need, over cuda-bindings, with every error code checked.

It owns no memory and keeps no state. cuda-bindings is imported when a function is called, so this
file costs nothing on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_asr.errors import DeviceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU as the CUDA driver describes it; `driver` is the newest CUDA version it serves, "12.6"."""

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str


def query_gpu(ordinal: int = 0) -> Gpu | None:
    """A GPU of this machine; None without one, without a driver or without cuda-bindings."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        check(driver.cuInit(0))
        version = check(driver.cuDriverGetVersion())
        device = check(driver.cuDeviceGet(ordinal))
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
    except (DeviceError, RuntimeError):  # cuda-bindings raises RuntimeError when there is no libcuda
        return None
    return Gpu(
        name=name.split(b"\0", 1)[0].decode(errors="replace").strip(),
        compute_capability=f"{major}.{minor}",
        multiprocessors=multiprocessors,
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


def check(returned: tuple[Any, ...]) -> Any:
    """What a call of cuda-bindings returned beside its error code: nothing, one value or a tuple.

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
