"""For the tests of loaders: a golden fixture through scripts/golden, judged by its bars.

The fixtures were made by the original projects' own code (shared/golden/README.md). Tolerances: float32
rounding over a few layers, eager against fused kernels (golden/compare.py, `Bars`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from golden.compare import Result, compare_fixture
from golden.fixtures import find_fixtures


def run_fixture(folder: Path, *, with_runtime: bool = False) -> Result:
    """What came of the fixture in a folder."""
    (fixture,) = find_fixtures(folder)
    assert fixture.checkpoint is not None, f"no loader recognizes {folder}"
    return compare_fixture(fixture, with_runtime=with_runtime)


def check_fixture(folder: Path, *, with_runtime: bool = False) -> Result:
    """The fixture passes every bar; the runtime's take an export, half a minute."""
    result = run_fixture(folder, with_runtime=with_runtime)
    assert result.failures() == []
    assert result.tokens_torch
    if with_runtime:
        assert result.runtime is not None
        assert result.tokens_runtime
    return result


def golden_folder(shared_dir: Path, name: str) -> Path:
    """A fixture's folder."""
    folder = shared_dir / "golden" / name
    assert folder.is_dir(), f"{folder} is missing"
    return folder


def arrays_of(folder: Path) -> dict[str, Any]:
    """golden.npz of a fixture."""
    (fixture,) = find_fixtures(folder)
    return fixture.arrays()
