"""The real FFT of scipy.fft, without the cost of importing scipy.fft.

That package imports scipy.special and numpy.f2py, which took a quarter of the time from the start of
`transcribe` to its first text. The transform itself is one extension module with no imports of its own, so
that is loaded alone: duccfft since scipy 1.18, pocketfft before, both with one signature and the bits of
their scipy.fft. If it cannot be loaded (another version of scipy, frozen programs) or gives another result,
scipy.fft is used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Transform = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

# Their package in scipy.fft and its extension module, the newer one first.
_EXTENSIONS = (("_duccfft", "pyduccfft"), ("_pocketfft", "pypocketfft"))


def load_rfft() -> Transform:
    """Return a function from [B, n] float32 or float64 to a complex spectrum [B, n // 2 + 1], one thread."""
    alone = _load_alone() if "scipy.fft" not in sys.modules else None
    if alone is not None:
        return alone
    import scipy.fft

    def transform(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        spectrum: npt.NDArray[Any] = scipy.fft.rfft(block, axis=1, workers=1)
        return spectrum

    return transform


def _load_alone() -> Transform | None:
    scipy = importlib.util.find_spec("scipy")  # finds it without importing it
    if scipy is None or not scipy.submodule_search_locations:
        return None
    fft = Path(scipy.submodule_search_locations[0], "fft")
    for package, extension in _EXTENSIONS:
        for suffix in EXTENSION_SUFFIXES:
            path = fft / package / f"{extension}{suffix}"
            if path.is_file():
                return _load_extension(f"scipy.fft.{package}.{extension}", path)
    return None


def _load_extension(name: str, path: Path) -> Transform | None:
    """The transform of an extension module; None where it cannot be had or is wrong."""
    try:
        loader = ExtensionFileLoader(name, str(path))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        module: Any = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        r2c = module.r2c

        def transform(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
            spectrum: npt.NDArray[Any] = r2c(block, (1,), True, 0, None, 1)
            return spectrum

        probe = np.arange(12, dtype=np.float64).reshape(2, 6)
        # Compare with the definition, because numpy.fft is one more package to import.
        basis = np.exp(-2j * np.pi / 6 * np.outer(np.arange(6), np.arange(4)))
        right = bool((np.abs(transform(probe) - probe @ basis) < 1e-12).all())
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return transform if right else None
