"""Detects the format of a file or folder by names and first bytes; needs no torch and never raises.

What this file does not do: read weights or judge settings. A loader that is chosen here may still refuse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_asr.checkpoints.safe_archive import is_tar
from edge_asr.errors import CheckpointError
from edge_asr.records import read_json

_META_HEAD_BYTES = 4096


def is_nemo(path: Path) -> bool:
    """A file named `.nemo` that begins like a tar archive."""
    return path.suffix == ".nemo" and path.is_file() and is_tar(path)


def is_parakeet(path: Path) -> bool:
    """A Hugging Face folder of ParakeetForCTC."""
    return architecture(path) == "ParakeetForCTC"


def is_wav2vec2(path: Path) -> bool:
    """A Hugging Face folder of Wav2Vec2ConformerForCTC."""
    return architecture(path) == "Wav2Vec2ConformerForCTC"


def is_espnet(path: Path) -> bool:
    """A packed folder of ESPnet's, an experiment's folder, or a .pth file in one."""
    try:
        if path.is_file():
            return path.suffix == ".pth" and (path.parent / "config.yaml").is_file()
        if (path / "config.yaml").is_file() and next(path.glob("*.pth"), None) is not None:
            return True
        meta = path / "meta.yaml"
        if not meta.is_file():
            return False
        with meta.open("rb") as handle:
            return b"asr_model_file" in handle.read(_META_HEAD_BYTES)
    except OSError:
        return False


def is_wenet(path: Path) -> bool:
    """A folder of train.yaml and .pt weights, or a .pt file in one."""
    try:
        if path.is_file():
            return path.suffix == ".pt" and (path.parent / "train.yaml").is_file()
        return (path / "train.yaml").is_file() and next(path.glob("*.pt"), None) is not None
    except OSError:
        return False


def is_torchaudio(path: Path) -> bool:
    """A folder with model.pt, and a config.json that describes a Conformer."""
    return (path / "model.pt").is_file() and isinstance(_settings(path).get("conformer"), dict)


def architecture(path: Path) -> str | None:
    """The first architecture that a folder's config.json names, or None."""
    names = _settings(path).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _settings(path: Path) -> dict[str, Any]:
    """Content of a folder's config.json; empty where there is none that can be read."""
    try:
        found = read_json(path / "config.json", error=CheckpointError)
    except (OSError, CheckpointError):
        return {}
    return found if isinstance(found, dict) else {}
