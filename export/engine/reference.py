"""Keeps what the float32 model gave for the cases of a proof, because it is the same for every precision.

On a Jetson the CPU takes minutes for these. A file is named after the model's hash and the inputs, so another
model, other clips or other profiles never meet it; only the newest few are kept, in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edge_asr.atomic import write_file
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Outputs

KEPT_FILES = 4


def cache_folder() -> Path:
    """Return the folder of the kept references: $XDG_CACHE_HOME/edge-asr/references, or below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edge-asr" / "references"


def recall_outputs(key: str, cases: Sequence[ProofCase], compute: Callable[[], Outputs]) -> Outputs:
    """Return the outputs of a model for `cases`: those that were kept, or computed now and kept.

    Args:
        key: names the model and what runs it, such as its hash and a version.
        cases: the inputs.
        compute: runs the model; a result with a failed case is not kept.
    """
    path = cache_folder() / f"{_name(key, cases)}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(path) as kept:
        return [
            tuple(kept[f"{number}.{row}"] for row in range(len(case.features)))
            for number, case in enumerate(cases)
        ]
    outputs = compute()
    if not any(isinstance(output, str) for output in outputs):
        with contextlib.suppress(OSError):  # no home, a full disk: it only saves time
            _keep(path, outputs)
    return outputs


def _name(key: str, cases: Sequence[ProofCase]) -> str:
    digest = hashlib.sha256(key.encode())
    for case in cases:
        for row in case.features:
            digest.update(f"{case.name} {row.shape}".encode())
            digest.update(np.ascontiguousarray(row).data)
    return digest.hexdigest()


def _keep(path: Path, outputs: Outputs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{number}.{row}": array for number, output in enumerate(outputs) for row, array in enumerate(output)
    }
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # its stub knows no names
    write_file(path, content.getvalue())
    files = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    for old in files[:-KEPT_FILES]:
        old.unlink(missing_ok=True)
