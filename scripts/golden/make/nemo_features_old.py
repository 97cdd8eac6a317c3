"""nemo-features-old: NeMo's log-mel features before 2.5, padded by reflection and one frame longer.

    git clone https://github.com/NVIDIA/NeMo
    pip install "nemo_toolkit[asr]==3.0.0"
    cd scripts && python -m golden.make.nemo_features_old ../tests/data/golden ../NeMo

`FilterbankFeatures` comes from the tags; the log-probs are those of nemo-fastconformer-bpe (made before, by
nemo_models.py) on these features. A single clip has no padding, so the encoder's code makes no difference.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golden.make.common import Fixture, clips, original, start

TAGS = ("v1.23.0", "v2.4.0")
SOURCE = "nemo/collections/asr/parts/preprocessing/features.py"
PARAMS = {
    "nfilt": 80,
    "n_window_size": 400,
    "n_window_stride": 160,
    "n_fft": 512,
    "normalize": "per_feature",
    "pad_to": 0,
    "dither": 0.0,
}


def features_class(clone: Path, tag: str, folder: Path) -> Any:
    """`FilterbankFeatures` of a tag."""
    text = subprocess.run(
        ["git", "-C", str(clone), "show", f"{tag}:{SOURCE}"], capture_output=True, text=True, check=True
    ).stdout
    path = folder / f"features_{tag.replace('.', '_')}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FilterbankFeatures


def compute(front_end: Any, clip: Tensor) -> Tensor:
    """[T, 80] of the valid frames."""
    features, lens = front_end(clip[None], torch.tensor([len(clip)]))
    rows: Tensor = features[0].T[: int(lens[0])]
    return rows


@torch.no_grad()
def make(root: Path, clone: Path) -> None:
    """Both tags' features, normalized and (first clip) as they are, and log-probs on them."""
    folder = start(root / "nemo-features-old")
    models = original("nemo.collections.asr").models
    model = models.ASRModel.restore_from(
        str(root / "nemo-fastconformer-bpe" / "model.nemo"), map_location="cpu"
    ).eval()
    fixture = Fixture(
        family="nemo", variant="features-old", seed=0, blank=0, source=f"{SOURCE} of NeMo's tags {TAGS}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for tag in TAGS:
            kind = features_class(clone, tag, Path(temporary))
            front_end = kind(**PARAMS).eval()
            plain = kind(**{**PARAMS, "normalize": None}).eval()
            for i, clip in enumerate(clips(root)):
                rows = compute(front_end, torch.from_numpy(clip))
                lens = torch.tensor([len(rows)])
                encoded, _ = model.encoder(audio_signal=rows.T[None], length=lens)
                fixture.add(f"{tag}_norm_clip{i}", rows)
                fixture.add(f"{tag}_norm_clip{i}_len", lens)
                fixture.add(f"{tag}_logp_clip{i}", model.decoder(encoder_output=encoded)[0])
            if tag == TAGS[-1]:
                rows = compute(plain, torch.from_numpy(clips(root)[0]))
                fixture.add(f"{tag}_raw_clip0", rows)
                fixture.add(f"{tag}_raw_clip0_len", torch.tensor([len(rows)]))
    fixture.info["params"] = PARAMS
    fixture.write(folder, ["nemo_toolkit", "librosa"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FOLDER NEMO_CLONE")
    make(Path(sys.argv[1]), Path(sys.argv[2]))
