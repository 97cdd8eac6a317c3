"""Train a CTC head on the states of a large encoder, and write what it says of every frame (`distillation:`).

    python scripts/recipes/tiny_en/teach.py runs/main/last -o .work/posteriors --minutes 30 \\
        --train an4=.work/states/an4 --train librispeech=.work/states/librispeech \\
        --dev .work/states/librispeech_dev --also machine=.work/states/machine

Each folder holds NNNNN.jsonl (rows of a manifest: audio_filepath, text) and NNNNN.npz (float16 [T, width]
for each row, named by its number in the file): the outputs of, say, Whisper's encoder, `--frame-s` apart.
CHECKPOINT gives the vocabulary, which is that of the student. The head learns in minutes what a small
Conformer learns in hours, because it sees good states. OUTPUT/NAME.npz is written for `--train` and `--also`.
Neither the encoder nor this head is part of what is shipped; this file does not run the encoder.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_asr.checkpoints import load_any
from edge_asr.metrics import compute_error_rates, normalize_text
from edge_asr.training.distillation import write_posteriors
from edge_asr.training.tokenizer import tokenizer_from_vocabulary
from edge_asr.vocabulary import Vocabulary

FolderPath = click.Path(exists=True, file_okay=False, path_type=Path)
BATCH_FRAMES = 2500
DROPOUT = 0.2


@dataclass(slots=True)
class Row:
    """One clip: its id in the manifest, its text, and f16 [T, width] states."""

    clip_id: str
    text: str
    states: npt.NDArray[np.float16]


class Head(nn.Module):
    """States (B, T, width) to log-probabilities (B, T, V): a convolution and two bidirectional GRU layers."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, 256, 3, padding=1)
        self.gru = nn.GRU(256, 192, 2, bidirectional=True, batch_first=True, dropout=DROPOUT)
        self.out = nn.Linear(384, vocab_size)

    def forward(self, states: Tensor, lens: Tensor) -> Tensor:
        """States are zero past `lens` i64 (B,)."""
        x = functional.silu(self.convolution(self.norm(states).transpose(1, 2)).transpose(1, 2))
        x = functional.dropout(x, DROPOUT, self.training)
        packed = nn.utils.rnn.pack_padded_sequence(x, lens, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return torch.log_softmax(self.out(x), dim=-1)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--train", "train_folders", multiple=True, required=True, metavar="NAME=FOLDER")
@click.option("--also", "other_folders", multiple=True, metavar="NAME=FOLDER", help="Written, not learned.")
@click.option("--dev", required=True, type=FolderPath)
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--frame-s", default=0.04, show_default=True, help="Seconds between two states.")
@click.option("--seed", default=1, show_default=True)
def main(
    checkpoint: Path,
    output: Path,
    train_folders: tuple[str, ...],
    other_folders: tuple[str, ...],
    dev: Path,
    minutes: float,
    frame_s: float,
    seed: int,
) -> None:
    """Train a head in the vocabulary of CHECKPOINT, then write the posteriors of every source."""
    torch.manual_seed(seed)
    student = load_any(checkpoint)
    tokenizer = tokenizer_from_vocabulary(student.vocabulary, student.tokenizer_model)
    learned = dict(split_name(item) for item in train_folders)
    rows = [row for folder in learned.values() for row in read_rows(folder)]
    examples = [
        (row.states, np.asarray(tokenizer.encode(row.text), np.int64)) for row in rows if row.text.strip()
    ]
    examples = [(states, tokens) for states, tokens in examples if len(states) > len(tokens) + 2]
    head = Head(examples[0][0].shape[1], len(student.vocabulary))
    fit(head, examples, student.vocabulary.blank_id, minutes, np.random.default_rng(seed))
    rates = measure(head, read_rows(dev), student.vocabulary)
    print(json.dumps({"examples": len(examples), "dev": dev.name, "wer": rates[0], "cer": rates[1]}))
    output.mkdir(parents=True, exist_ok=True)
    for name, folder in {**learned, **dict(split_name(item) for item in other_folders)}.items():
        said = ((row.clip_id, log_probs_of(head, row.states)) for row in read_rows(folder))
        write_posteriors(output / f"{name}.npz", said, student.vocabulary, frame_s=frame_s)


def split_name(item: str) -> tuple[str, Path]:
    """NAME=FOLDER."""
    name, _, folder = item.partition("=")
    if not folder or not Path(folder).is_dir():
        raise click.BadParameter(f"{item!r} is not NAME=FOLDER with a folder that exists")
    return name, Path(folder)


def read_rows(folder: Path) -> Iterator[Row]:
    """The rows of every NNNNN.jsonl that has its NNNNN.npz."""
    for path in sorted(folder.glob("*.jsonl")):
        states = path.with_suffix(".npz")
        if not states.is_file():
            continue
        with np.load(states) as archive:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                row = json.loads(line)
                clip_id = str(row.get("id", row["audio_filepath"]))
                yield Row(clip_id, normalize_text(row.get("text", ""), "basic"), archive[str(number)])


def fit(
    head: Head,
    examples: Sequence[tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]],
    blank_id: int,
    minutes: float,
    rng: np.random.Generator,
) -> None:
    """CTC with masked stretches of time, for `minutes` of wall clock, cosine to zero."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.01)
    head.train()
    started, step = time.monotonic(), 0
    while True:
        for batch in batches(examples, rng):
            done = (time.monotonic() - started) / 60 / minutes
            if done >= 1 and step > 0:
                head.eval()
                return
            rate = 2e-3 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            lens = torch.tensor([len(states) for states, _ in batch])
            padded = torch.zeros(len(batch), int(lens.max()), batch[0][0].shape[1])
            for index, (states, _) in enumerate(batch):
                padded[index, : len(states)] = torch.from_numpy(states.astype(np.float32))
                for _ in range(2):
                    width = int(rng.integers(0, 9))
                    begin = int(rng.integers(0, max(len(states) - width, 1)))
                    padded[index, begin : begin + width] = 0.0
            loss = functional.ctc_loss(
                head(padded, lens).transpose(0, 1),
                torch.from_numpy(np.concatenate([tokens for _, tokens in batch])),
                lens,
                torch.tensor([len(tokens) for _, tokens in batch]),
                blank=blank_id,
                zero_infinity=True,
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            step += 1


def batches(
    examples: Sequence[tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]], rng: np.random.Generator
) -> list[list[tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]]]:
    """Examples of about one length together, up to BATCH_FRAMES with padding, in random order."""
    made: list[list[tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]]] = []
    for index in np.argsort([len(states) * rng.uniform(0.9, 1.1) for states, _ in examples]):
        longest = max(len(examples[index][0]), *(len(states) for states, _ in made[-1])) if made else 0
        if made and (len(made[-1]) + 1) * longest <= BATCH_FRAMES:
            made[-1].append(examples[index])
        else:
            made.append([examples[index]])
    return [made[index] for index in rng.permutation(len(made))]


@torch.no_grad()
def log_probs_of(head: Head, states: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """What the head says of one clip, f32 [T, V]."""
    padded = torch.from_numpy(states.astype(np.float32))[None]
    said: npt.NDArray[np.float32] = head(padded, torch.tensor([len(states)]))[0].numpy()
    return said


def measure(head: Head, rows: Iterator[Row], vocabulary: Vocabulary) -> tuple[float, float]:
    """WER and CER of the head's best path."""
    references, texts = [], []
    for row in rows:
        best = torch.from_numpy(log_probs_of(head, row.states).argmax(axis=1))
        collapsed = [int(i) for i in torch.unique_consecutive(best) if int(i) != vocabulary.blank_id]
        references.append(row.text)
        texts.append(vocabulary.decode(collapsed))
    rates = compute_error_rates(references, texts, normalization="basic")
    return rates.wer, rates.cer


if __name__ == "__main__":
    main()
