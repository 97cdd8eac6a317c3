"""For the tests of loaders: a golden fixture through scripts/golden, judged by its bars.

The fixtures were made by the original projects' own code (tests/data/golden/README.md). Tolerances: float32
rounding over a few layers, eager against fused kernels (golden/compare.py, `Bars`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from golden.compare import Result, compare_fixture
from golden.fixtures import find_fixtures


def run_fixture(folder: Path, bundle: Path | None = None) -> Result:
    """What came of the fixture in a folder; with its bundle, through the runtime too."""
    (fixture,) = find_fixtures(folder)
    assert fixture.checkpoint is not None, f"no loader recognizes {folder}"
    # Streams through the runtime have a test of their own (test_streaming_golden.py).
    return compare_fixture(
        fixture, with_runtime=bundle is not None, with_streams=bundle is None, bundle=bundle
    )


def check_fixture(folder: Path, bundle: Path | None = None) -> Result:
    """The fixture passes every bar; with its bundle, the runtime's too."""
    result = run_fixture(folder, bundle)
    assert result.failures() == []
    assert result.tokens_torch
    if bundle is not None:
        assert result.runtime is not None
        assert result.tokens_runtime
    return result


def golden_folder(golden_dir: Path, name: str) -> Path:
    """A fixture's folder."""
    folder = golden_dir / name
    assert folder.is_dir(), f"{folder} is missing"
    return folder


def arrays_of(folder: Path) -> dict[str, Any]:
    """golden.npz of a fixture."""
    (fixture,) = find_fixtures(folder)
    return fixture.arrays()
