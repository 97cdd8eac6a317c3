"""The real FFT: scipy's own bits, whether its extension is loaded alone or through scipy.fft."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft

from edge_asr.runtime.features import fft

_ALONE = (
    "import sys, numpy as np; before = set(sys.modules);"
    "from edge_asr.runtime.features.fft import load_rfft; f = load_rfft();"
    "x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32); y = f(x);"
    "brought = set(sys.modules) - before;"
    "print([m for m in ('scipy.fft', 'scipy.special', 'numpy.fft') if m in brought]); import scipy.fft;"
    "print(y.dtype, bool((y == scipy.fft.rfft(x, axis=1)).all()))"
)


def test_alone_it_is_scipys_and_brings_nothing_along() -> None:
    done = subprocess.run([sys.executable, "-c", _ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "complex64 True"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [400, 512, 1024])
def test_every_way_gives_the_same_bits(n: int, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    block = np.random.default_rng(1).standard_normal((5, n)).astype(dtype)
    expected = scipy.fft.rfft(block, axis=1)
    assert (fft.load_rfft()(block) == expected).all()  # scipy.fft is there already
    alone = fft._load_alone()
    if alone is not None:
        assert (alone(block) == expected).all()
    monkeypatch.setattr(fft, "_load_alone", lambda: None)
    monkeypatch.delitem(sys.modules, "scipy.fft")
    assert (fft.load_rfft()(block) == expected).all()


def test_a_scipy_without_the_extension_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fft, "EXTENSION_SUFFIXES", [".none"])
    assert fft._load_alone() is None


def test_the_extension_of_this_scipy_is_known() -> None:
    """Without it everything works, slowly: say so when scipy moves it again."""
    folders = Path(scipy.fft.__file__).parent
    assert any((folders / package).is_dir() for package, _ in fft._EXTENSIONS), sorted(folders.iterdir())
    assert fft._load_alone() is not None


@pytest.mark.parametrize("name", ["pyduccfft", "pypocketfft"])
def test_either_extension_is_found_where_its_scipy_keeps_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that looks like another scipy; what would be loaded, without loading it."""
    package = {extension: package for package, extension in fft._EXTENSIONS}[name]
    file = tmp_path / "scipy" / "fft" / package / f"{name}{fft.EXTENSION_SUFFIXES[0]}"
    file.parent.mkdir(parents=True)
    file.touch()
    scipy_folder = SimpleNamespace(submodule_search_locations=[str(tmp_path / "scipy")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: scipy_folder)
    asked: list[tuple[str, Path]] = []
    monkeypatch.setattr(fft, "_load_extension", lambda *wanted: asked.append(wanted))
    fft._load_alone()
    assert asked == [(f"scipy.fft.{package}.{name}", file)]


def test_an_extension_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(r2c=lambda block, *rest: np.zeros((len(block), block.shape[1] // 2 + 1), complex))
    monkeypatch.setattr(fft.ExtensionFileLoader, "exec_module", lambda self, module: None)
    monkeypatch.setattr(importlib.util, "module_from_spec", lambda spec: wrong)
    assert fft._load_extension("scipy.fft._duccfft.pyduccfft", Path("pyduccfft.so")) is None
