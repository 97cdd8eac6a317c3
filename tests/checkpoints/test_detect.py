"""Formats are detected by names and first bytes alone: no torch, no loader, never an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edge_asr.checkpoints import find_loader


def put(path: Path, content: bytes | str | dict[str, object] = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text.encode() if isinstance(text, str) else text)


@pytest.fixture
def examples(tmp_path: Path) -> dict[Path, str]:
    """One example of each form of each format -> its name; only what detection looks at is there."""
    put(tmp_path / "ours" / "config.json", {"format_version": 1})
    put(tmp_path / "ours" / "model.safetensors")
    for name, architecture in (("hf1", "ParakeetForCTC"), ("hf2", "Wav2Vec2ConformerForCTC")):
        put(tmp_path / name / "config.json", {"architectures": [architecture]})
        put(tmp_path / name / "model.safetensors")
    put(tmp_path / "espnet" / "config.yaml")
    put(tmp_path / "espnet" / "valid.acc.ave.pth")
    put(tmp_path / "packed" / "meta.yaml", "files:\n  asr_model_file: exp/x.pth\n")
    put(tmp_path / "wenet" / "train.yaml")
    put(tmp_path / "wenet" / "final.pt")
    put(tmp_path / "torchaudio" / "config.json", {"conformer": {}})
    put(tmp_path / "torchaudio" / "model.pt")
    with tarfile.open(tmp_path / "model.nemo", "w") as archive:
        archive.add(tmp_path / "wenet" / "train.yaml", "model_config.yaml")
    return {
        tmp_path / "ours": "edge-asr",
        tmp_path / "hf1": "parakeet",
        tmp_path / "hf2": "wav2vec2",
        tmp_path / "espnet": "espnet",
        tmp_path / "espnet" / "valid.acc.ave.pth": "espnet",
        tmp_path / "packed": "espnet",
        tmp_path / "wenet": "wenet",
        tmp_path / "wenet" / "final.pt": "wenet",
        tmp_path / "torchaudio": "torchaudio",
        tmp_path / "model.nemo": "nemo",
    }


def test_every_format_is_detected_without_torch(examples: dict[Path, str]) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'yaml', 'onnx'): sys.modules[name] = None\n"
        "from edge_asr.checkpoints import find_loader\n"
        "print(*(find_loader(path).name for path in sys.argv[1:]))"
    )
    paths = [str(path) for path in examples]
    done = subprocess.run([sys.executable, "-c", code, *paths], check=True, capture_output=True, text=True)
    assert done.stdout.split() == list(examples.values())


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"[1]", b"\xff", b'{"architectures": 5}'])
def test_what_is_none_of_them_is_no_error(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "folder" / "config.json", content)
    put(tmp_path / "model.nemo", content)
    assert find_loader(tmp_path / "folder") is None
    assert find_loader(tmp_path / "model.nemo") is None
    assert find_loader(tmp_path / "nothing") is None


def test_pipes_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe.nemo", tmp_path / "folder" / "config.json"):
        os.mkfifo(path)
    assert find_loader(tmp_path / "pipe.nemo") is None
    assert find_loader(tmp_path / "folder") is None
