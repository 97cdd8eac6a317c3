"""Tries native libraries in a process of their own, so that a crash or a hang becomes a line.

What this file does not do: know any library (the areas bring the code).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import edge_asr

TIMEOUT_S = 60.0


def run_probe(code: str, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """Return the JSON object that `code` prints last in a fresh Python, or None and what went wrong.

    Args:
        code: a Python program. It runs in the home folder, so that no folder here shadows a package.
        arguments: its `sys.argv[1:]`.
    """
    # The child imports the same edge_asr as this process, also from a clone.
    paths = (str(Path(edge_asr.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", ""))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=Path.home(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        )
    except subprocess.TimeoutExpired:
        return None, f"did not answer within {TIMEOUT_S:g} s"
    if done.returncode < 0:
        return None, f"crashed with signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        return None, lines[-1] if lines else f"exit code {done.returncode}"
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return None, f"gave no answer: {done.stdout.strip()[-200:]!r}"
    return result, ""
