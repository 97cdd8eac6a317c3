"""Fixtures of the virtual microphone, see virtual_microphone.py.

Tests that need it carry the marker `mic`; they are skipped with the reason where the tools are
missing, and fail for the same reason when CI is set.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# So that the tests here, and the programs they start, can import the helpers beside them.
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from virtual_microphone import VirtualMicrophone


@pytest.fixture(scope="session")
def needs_virtual_microphone() -> None:
    """Skip where the tools are missing; fail instead when CI is set."""
    from virtual_microphone import PACKAGES, missing_tools

    missing = missing_tools()
    if missing:
        reason = f"the virtual microphone needs {', '.join(missing)}: apt install {PACKAGES}"
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def virtual_microphone(
    request: pytest.FixtureRequest, needs_virtual_microphone: None
) -> Iterator[VirtualMicrophone]:
    """A virtual microphone at the rate given as the fixture's parameter, 48 kHz without one."""
    from virtual_microphone import VirtualMicrophone

    # A unix socket's path may have 107 bytes; pytest's own temporary folders are often longer.
    with (
        tempfile.TemporaryDirectory(prefix="edge-asr-mic-") as folder,
        VirtualMicrophone(Path(folder), getattr(request, "param", 48_000)).running() as microphone,
    ):
        yield microphone
