"""Shared by the makers of golden fixtures: the clips, random weights, the arrays, the files.

They draw weights that leave nothing at its default, center a CTC head so that its argmax varies, collect the
arrays of golden.npz, and write the fixture's folder with versions and seed.
What this file does not do: know any project (the other files here do), or import edge_asr, because the code
that judges ours must not come from it.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor, nn

#: Rows of the padded batch: the longest clip is neither first nor alone.
BATCH_ORDER = (1, 0, 2)
SAMPLE_RATE = 16_000
#: The vocabulary of the models that spell: no piece needs a tokenizer to be read.
CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"
#: Pieces of the models with a SentencePiece or BPE vocabulary, the word boundary as it is written there.
_PIECES = (
    "▁the ▁a ▁of ▁and ▁to in er ▁s ed ing ▁he on re ▁w ou or ▁b ▁was an "
    "▁it ll ▁th ▁ e t a o n i h s r d l u m c w f g y p b v k ' x j q z"
)
PIECES = _PIECES.split()

#: What SentencePiece models are trained on.
SENTENCES = (
    "the robot turns left and drives to the kitchen",
    "stop at the second door and wait for me",
    "take the blue box from the table and bring it here",
    "what is the battery level of the arm",
    "go back to the charger quickly, it said, and don't drop the jar",
    "show me the next frame of the video and zoom in",
)


def original(name: str) -> Any:
    """A module of the original project, with the sentence that helps where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name} cannot be imported ({error}); see the head of this maker for what it needs")


def clips(root: Path) -> list[npt.NDArray[np.float32]]:
    """The clips in `root`, [S] float32, int16 / 32768: the input of every original."""
    waveforms = []
    for path in sorted(root.glob("audio_*.flac")):
        samples, rate = soundfile.read(path, dtype="int16")
        assert rate == SAMPLE_RATE
        waveforms.append(samples.astype(np.float32) / 32768)
    assert len(waveforms) == len(BATCH_ORDER), f"{root} should hold audio_0.flac to audio_2.flac"
    return waveforms


def padded(rows: Sequence[npt.NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Rows [L, ...] of several lengths as one batch, zeros behind, and their lengths."""
    batch = nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
    return batch, torch.tensor([len(row) for row in rows])


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Draw every parameter and running statistic, so that one left out or swapped changes the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm:
                parameter.copy_(normal(parameter, 0.3) + (1.0 if name == "weight" else 0.0))
            elif parameter.dim() < 2:
                parameter.copy_(normal(parameter, 0.2))
            else:
                parameter.copy_(normal(parameter, (1.2 / parameter[0].numel()) ** 0.5))
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.copy_(normal(buffer, 0.3))
            elif name == "running_var":
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


@torch.no_grad()
def center_head(head: nn.Module, encoded: Iterable[Tensor], spread: float = 3.0) -> None:
    """Scale a CTC head (Linear, or Conv1d of kernel 1) to logits of deviation `spread` and mean 0 over time.

    A random encoder gives nearly the same output for every frame; without its mean the text changes.
    """
    frames = torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in encoded])
    weight: Any = head.weight
    matrix = weight.reshape(weight.shape[0], -1)
    logits = (frames - frames.mean(0)) @ matrix.T
    matrix.mul_(spread / logits.std(0, keepdim=True).T)
    bias: Any = head.bias
    bias.copy_(-(matrix @ frames.mean(0)))


def train_sentencepiece(folder: Path, vocab_size: int, **options: Any) -> Path:
    """Train a small BPE model on `SENTENCES`: tokenizer.model and tokenizer.vocab in `folder`."""
    sentencepiece = original("sentencepiece")
    text = folder / "text.txt"
    text.write_text("\n".join(SENTENCES) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",  # the table of the default rule has 240 kB
        **options,
    )
    text.unlink()
    return folder / "tokenizer.model"


def collapsed(log_probs: npt.NDArray[np.float32], blank: int) -> npt.NDArray[np.int64]:
    """Greedy CTC ids of [T, V]: repetitions once, blanks removed (Graves 2006)."""
    best = log_probs.argmax(-1)
    kept = best[np.diff(best, prepend=-1) != 0]
    ids: npt.NDArray[np.int64] = kept[kept != blank].astype(np.int64)
    return ids


class Fixture:
    """The arrays and facts of one fixture as they come."""

    def __init__(self, *, family: str, variant: str, seed: int, blank: int, source: str) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.blank = blank
        self.info: dict[str, Any] = {
            "family": family,
            "variant": variant,
            "seed": seed,
            "blank_id": blank,
            "source": source,
            "batch_order": list(BATCH_ORDER),
            "results": {},
        }

    def add(self, key: str, value: Tensor | npt.NDArray[Any]) -> None:
        """Add one array; floats are kept as float32."""
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.arrays[key] = array.astype(np.float32) if array.dtype == np.float64 else array.copy()

    def add_clip(
        self, index: int, features: Tensor, feature_len: int, log_probs: Tensor, n_valid: int
    ) -> None:
        """Add one clip alone: features [1, T, F] (or the wave [1, S]), log-probs [1, T', V]."""
        key = f"clip{index}"
        self.add(f"{key}_feat", features)
        self.add(f"{key}_feat_len", np.array([feature_len]))
        self.add(f"{key}_logp", log_probs)
        self.add(f"{key}_len", np.array([n_valid]))
        valid = log_probs[0, :n_valid].numpy()
        ids = collapsed(valid, self.blank)
        self.add(f"{key}_ids0", ids)
        top = np.sort(valid, axis=-1)
        self.info["results"][key] = {
            "min_margin": float((top[:, -1] - top[:, -2]).min()),
            "n_tokens": len(ids),
            "distinct_tokens": len(set(ids.tolist())),
        }

    def add_batch(self, log_probs: Tensor, lens: Sequence[int]) -> None:
        """The clips as one padded batch in `BATCH_ORDER`: log-probs [3, T', V]."""
        self.add("batch_logp", log_probs)
        self.add("batch_len", np.array(lens))
        for row, n_valid in enumerate(lens):
            self.add(f"batch_ids{row}", collapsed(log_probs[row, :n_valid].numpy(), self.blank))

    def share_features(self, folder: Path, other: str) -> None:
        """Leave out `clip<i>_feat`, which are bit for bit those of the fixture `other` beside this one."""
        with np.load(folder.parent / other / "golden.npz") as archive:
            for key in [key for key in self.arrays if key.endswith("_feat")]:
                assert np.array_equal(self.arrays.pop(key), archive[key]), f"{key} is not {other}'s"
        self.info["features_of"] = other

    def write(self, folder: Path, packages: Sequence[str]) -> None:
        """golden.npz and golden.json, beside the checkpoint that is there already."""
        for index in range(len(BATCH_ORDER)):
            result = self.info["results"].get(f"clip{index}")
            if result is None:  # features alone
                continue
            assert result["distinct_tokens"] >= 5, f"clip {index} says nearly nothing: {result}"
            assert result["min_margin"] > 1e-4, f"clip {index} has a tie that rounding decides: {result}"
        packages = ("numpy", "torch", *packages)
        versions = {name: metadata.version(name) for name in packages}
        self.info["versions"] = {"python": platform.python_version(), **versions}
        arrays: dict[str, Any] = self.arrays
        np.savez_compressed(folder / "golden.npz", **arrays)
        (folder / "golden.json").write_text(json.dumps(self.info, indent=1) + "\n")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder}: {size / 1e3:.0f} kB, {self.info['results']}")


def start(folder: Path) -> Path:
    """Make an empty folder for a fixture; the settings that make float32 repeatable."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*"):
        assert path.is_dir() or path.name in ("golden.npz", "golden.json"), f"{folder} is in use: {path.name}"
    return folder


def main(make: Any) -> None:
    """Run a maker: `make(root)` with the folder that holds the clips."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: {sys.argv[0]} FOLDER, which holds audio_0.flac to audio_2.flac")
    with torch.no_grad():
        make(Path(sys.argv[1]))
