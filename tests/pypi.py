"""Packages from the index that tests look into and never install beside ours.

Each lands in a folder of its own below the pytest cache, once for all runs. Where there is no index, the test
is skipped with the reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NO_INDEX = re.compile(
    r"Could not fetch URL .*(connection error|timed out|SSL)|Ignoring indexes|Name or service not known"
    r"|Temporary failure in name resolution|NewConnectionError",
    re.IGNORECASE,
)


def package_folder(config: pytest.Config, requirement: str) -> Path:
    """Return the folder into which pip has put `requirement`, "name==version", without its dependencies."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = config.rootpath / ".pytest_cache" / "packages" / f"{requirement}-{tag}"
    if folder.is_dir():
        return folder
    filling = folder.with_name(f"{folder.name}.{os.getpid()}")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
    ]
    command += ["--no-deps", "--only-binary", ":all:", "--target", str(filling), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and NO_INDEX.search(done.stdout + done.stderr):
        pytest.skip(f"needs {requirement} from a package index, and pip could not reach one")
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"{requirement} has no wheel for {tag} on this machine")
    assert done.returncode == 0, done.stderr[-2000:]
    try:
        filling.rename(folder)
    except OSError:  # another process was faster
        assert folder.is_dir()
    return folder
