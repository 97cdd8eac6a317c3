"""Checks Python, the packages that edge-asr always needs, and the extras that some commands need.

What this file does not do: load any of them (the areas of inference, audio and TensorRT do).
"""

from __future__ import annotations

import platform

from edge_asr.diagnostics.check import Check, list_requirements, split_installed

#: onnxruntime and TensorRT have lines of their own.
EXTRAS = ("vad", "eval", "bench", "export", "train")


def check_python() -> list[Check]:
    """Check Python and platform, and the packages that edge-asr always needs."""
    where = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    checks = [Check(name="python", status="ok", detail=where, required=True)]
    versions, absent = split_installed(list_requirements(None))
    checks.append(
        Check(
            name="packages",
            status="missing" if absent else "ok",
            detail=f"not installed: {', '.join(absent)}" if absent else ", ".join(versions),
            fix="pip install edge-asr" if absent else "",
            required=True,
        )
    )
    return checks


def check_extras() -> list[Check]:
    """Check the extras that commands other than transcribe and listen need."""
    checks = []
    for extra in EXTRAS:
        versions, absent = split_installed(list_requirements(extra))
        if absent:
            detail, fix = f"not installed: {', '.join(absent)}", f"pip install 'edge-asr[{extra}]'"
            checks.append(Check(name=f"extra {extra}", status="missing", detail=detail, fix=fix))
        else:
            checks.append(Check(name=f"extra {extra}", status="ok", detail=", ".join(versions)))
    return checks
