"""torchaudio-conformer*: torchaudio's Conformer and MelSpectrogram under a Linear head.

    pip install torchaudio==2.11.0
    cd scripts && python -m golden.make.torchaudio_conformer ../tests/data/golden

torchaudio has no file format of a CTC model: config.json and model.pt (state dict: `conformer.` as torchaudio
names it, `head.`) are this fixture's own, described in docs/checkpoints.md. Both parts are pure Python: where
torchaudio's compiled library wants a CUDA that is not there, its `lib/*.so` may be deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from golden.make.common import (
    BATCH_ORDER,
    CHARACTERS,
    Fixture,
    center_head,
    clips,
    main,
    original,
    padded,
    randomize,
    start,
)

LOG = {"type": "add", "value": 1e-6}
VARIANTS: dict[str, dict[str, Any]] = {
    "conformer": {"seed": 31, "n_mels": 40, "layers": 2, "group_norm": False},
    "conformer-norm": {"seed": 32, "n_mels": 32, "layers": 2, "group_norm": True},
}


class Model(nn.Module):
    """The state dict's two parts."""

    def __init__(self, conformer: nn.Module, dim: int, n_tokens: int) -> None:
        super().__init__()
        self.conformer = conformer
        self.head = nn.Linear(dim, n_tokens)


def make(root: Path) -> None:
    """Make the fixtures with BatchNorm and with GroupNorm."""
    for variant, settings in VARIANTS.items():
        make_one(root, variant, **settings)


def make_one(root: Path, variant: str, *, seed: int, n_mels: int, layers: int, group_norm: bool) -> None:
    """Build, save, load again, run."""
    torchaudio = original("torchaudio")
    folder = start(root / f"torchaudio-{variant}")
    mel = {"n_fft": 400, "win_length": 400, "hop_length": 160, "n_mels": n_mels}
    shape = {
        "input_dim": n_mels,
        "num_heads": 4,
        "ffn_dim": 2 * n_mels,
        "num_layers": layers,
        "depthwise_conv_kernel_size": 31,
        "use_group_norm": group_norm,
        "convolution_first": False,
    }
    tokens = ["<blank>", *CHARACTERS]
    config = {
        "sample_rate": 16_000,
        "mel_spectrogram": mel,
        "log": LOG,
        "conformer": shape,
        "tokens": tokens,
        "blank": 0,
        "word_delimiter": " ",
    }
    model = Model(torchaudio.models.Conformer(**shape), n_mels, len(tokens)).eval()
    randomize(model, seed)
    spectrogram = torchaudio.transforms.MelSpectrogram(sample_rate=16_000, **mel)
    features = [
        torch.log(spectrogram(torch.from_numpy(clip)).T + LOG["value"]).contiguous() for clip in clips(root)
    ]
    encoded = [model.conformer(f[None], torch.tensor([len(f)]))[0] for f in features]
    center_head(model.head, encoded)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    fresh = Model(torchaudio.models.Conformer(**shape), n_mels, len(tokens)).eval()
    fresh.load_state_dict(torch.load(folder / "model.pt", weights_only=True))

    def run(batch: Tensor, lens: Tensor) -> tuple[Tensor, list[int]]:
        encoded, out_lens = fresh.conformer(batch, lens)
        return fresh.head(encoded).log_softmax(-1), out_lens.tolist()

    fixture = Fixture(
        family="torchaudio",
        variant=variant,
        seed=seed,
        blank=0,
        source="torchaudio.models.Conformer, torchaudio.transforms.MelSpectrogram, torch.nn.Linear",
    )
    for i, clip in enumerate(features):
        log_probs, lens = run(clip[None], torch.tensor([len(clip)]))
        fixture.add_clip(i, clip[None], len(clip), log_probs, lens[0])
    log_probs, lens = run(*padded([features[i].numpy() for i in BATCH_ORDER]))
    fixture.add_batch(log_probs, lens)
    fixture.info["hyper"] = {"mel": mel, "log": LOG, "conformer": shape}
    fixture.write(folder, ["torchaudio"])


if __name__ == "__main__":
    main(make)
