"""A teacher's posteriors of every frame, read from disk, as targets beside CTC (Hinton et al. 2015).

The teacher runs once, over clean clips, with any code; what it thought lies in FOLDER/SOURCE.npz, the most
probable few tokens of each frame only. Joining, speed and silence move and stretch its frames with the sound.
Its vocabulary is that of the student, at the same or a finer frame rate. Nothing here runs a teacher.

SOURCE.npz: ids [n] text, ends i64 [n] (frames of all clips lie one after another), tokens u16 [frames, k],
log_probs f16 [frames, k], frame_s f64 [], vocabulary [V] text, in the order of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_asr.errors import ConfigError
from edge_asr.training.corpus import Clip
from edge_asr.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Posteriors:
    """The teacher's output for one clip: u16 [F, k] tokens, f16 [F, k] log-probabilities, frame_s apart."""

    tokens: npt.NDArray[np.uint16]
    log_probs: npt.NDArray[np.float16]
    frame_s: float


@dataclass(frozen=True, slots=True)
class Teacher:
    """The data that the targets of a run depend on.

    posteriors: posteriors of each training clip.  frame_s: seconds between the student's frames.
    """

    posteriors: Sequence[Posteriors | None]
    frame_s: float
    blank_id: int
    temperature: float


@dataclass(slots=True)
class TeacherTargets:
    """Targets of one batch: i64 [B, T', k] tokens, f32 [B, T', k] probabilities; 0 where it is silent."""

    tokens: Tensor
    probs: Tensor

    def to(self, device: torch.device) -> TeacherTargets:
        """The targets on `device`."""
        return TeacherTargets(
            self.tokens.to(device, non_blocking=True), self.probs.to(device, non_blocking=True)
        )

    @property
    def n_frames(self) -> int:
        """Frames about which something is known."""
        return int((self.probs.sum(dim=-1) > 0).sum())


def write_posteriors(
    path: Path,
    rows: Iterable[tuple[str, npt.NDArray[np.float32]]],
    vocabulary: Vocabulary,
    *,
    frame_s: float,
    n_kept: int = 8,
) -> None:
    """Write (clip id, log-probabilities f32 [F, V]) rows; the `n_kept` most probable tokens of each frame."""
    ids, ends, tokens, log_probs, end = [], [], [], [], 0
    for clip_id, row in rows:
        best = np.argsort(-row, axis=1)[:, :n_kept]
        end += len(row)
        ids.append(clip_id)
        ends.append(end)
        tokens.append(best.astype(np.uint16))
        log_probs.append(np.take_along_axis(row, best, axis=1).astype(np.float16))
    partial = path.with_suffix(".tmp.npz")
    np.savez(
        partial,
        ids=np.array(ids),
        ends=np.array(ends, np.int64),
        tokens=np.concatenate(tokens),
        log_probs=np.concatenate(log_probs),
        frame_s=np.float64(frame_s),
        vocabulary=np.array(vocabulary.tokens),
    )
    partial.replace(path)


def load_posteriors(
    folder: str | Path, clips: Sequence[Clip], vocabulary: Vocabulary
) -> list[Posteriors | None]:
    """Load the teacher's output for each clip; None for clips (and whole sources) that it did not hear.

    Raises:
        ConfigError: a file that cannot be read or has another vocabulary, or no posteriors at all.
    """
    known: dict[tuple[str, str], Posteriors] = {}
    for source in sorted({clip.source for clip in clips}):
        path = Path(folder) / f"{source}.npz"
        if not path.is_file():
            continue
        try:
            with np.load(path) as file:
                data = {name: file[name] for name in file.files}
            ends, tokens, log_probs = data["ends"], data["tokens"], data["log_probs"]
            theirs, frame_s = tuple(str(token) for token in data["vocabulary"]), float(data["frame_s"])
            ids = [str(clip_id) for clip_id in data["ids"]]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"cannot read the teacher's posteriors {path}: {error}") from error
        if theirs != vocabulary.tokens:
            raise ConfigError(
                f"{path} has a vocabulary of {len(theirs)} tokens, not the student's of {len(vocabulary)}; "
                "write it again with the tokenizer of this run"
            )
        for clip_id, begin, end in zip(ids, [0, *ends[:-1]], ends, strict=True):
            known[source, clip_id] = Posteriors(tokens[begin:end], log_probs[begin:end], frame_s)
    found = [known.get((clip.source, clip.id)) for clip in clips]
    if not any(item is not None for item in found):
        raise ConfigError(f"{folder} holds no posteriors of a training clip; files are named SOURCE.npz")
    return found


def place_posteriors(
    parts: Sequence[tuple[int, float, float, float]], n_frames: int, teacher: Teacher
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None:
    """Targets of one example at the student's frames: i64 and f32 [n_frames, k]; None without any posterior.

    Of the teacher's frames within one of the student, the least blank one speaks: a token of CTC lasts for
    one frame only, and must not fall between two.

    Args:
        parts: for each clip its number, the second at which it begins, its seconds and its speed.
        n_frames: frames of the student.
        teacher: what is known.
    """
    known = [item for clip, _, _, _ in parts if (item := teacher.posteriors[clip]) is not None]
    if not known:
        return None
    tokens = np.zeros((n_frames, known[0].tokens.shape[1]), np.int64)
    probs = np.zeros(tokens.shape, np.float32)
    for clip, begin_s, length_s, speed in parts:
        item = teacher.posteriors[clip]
        if item is None or len(item.tokens) == 0:
            continue
        first = round(begin_s / teacher.frame_s)
        last = min(round((begin_s + length_s) / teacher.frame_s), n_frames)
        step = teacher.frame_s * speed / item.frame_s
        blank = np.where(item.tokens == teacher.blank_id, item.log_probs, -np.inf).max(axis=1)
        chosen = np.zeros(max(last - first, 0), np.int64)
        for index in range(len(chosen)):
            low = min(int(index * step), len(blank) - 1)
            high = max(low + 1, min(int((index + 1) * step), len(blank)))
            chosen[index] = low + int(blank[low:high].argmin())
        scaled = item.log_probs[chosen].astype(np.float32) / teacher.temperature
        scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        tokens[first:last] = item.tokens[chosen]
        probs[first:last] = scaled / scaled.sum(axis=1, keepdims=True)
    return tokens, probs


def collate_targets(
    rows: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None],
) -> TeacherTargets | None:
    """Pad the rows of a batch; None when no row has targets."""
    known = [row for row in rows if row is not None]
    if not known:
        return None
    shape = (len(rows), max(len(row[0]) for row in known), known[0][0].shape[1])
    tokens, probs = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    for index, row in enumerate(rows):
        if row is not None:
            tokens[index, : len(row[0])] = torch.from_numpy(row[0])
            probs[index, : len(row[0])] = torch.from_numpy(row[1])
    return TeacherTargets(tokens, probs)


def teacher_divergence(log_probs: Tensor, teacher: TeacherTargets, temperature: float) -> Tensor:
    """KL(teacher || student) over the teacher's tokens, summed over frames, times temperature squared.

    Args:
        log_probs: f32 [B, T, V] of the student; T may exceed that of the targets, or fall short.
        teacher: its targets at `temperature`.
        temperature: the student's probabilities are softened alike.
    """
    n_frames = min(log_probs.shape[1], teacher.tokens.shape[1])
    student = log_probs[:, :n_frames].float()
    if temperature != 1.0:
        student = torch.log_softmax(student / temperature, dim=-1)
    tokens, probs = teacher.tokens[:, :n_frames], teacher.probs[:, :n_frames]
    entropy = torch.xlogy(probs, probs).sum()
    cross = (probs * student.gather(-1, tokens)).sum()
    return (entropy - cross) * temperature**2
