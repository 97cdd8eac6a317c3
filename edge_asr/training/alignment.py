"""Finds where each character of a clip is said, by a trained CTC model, and keeps it as JSON Lines.

A flat start from such times (`optim.flat_start_alignments`) is better than tokens spread evenly, and they
serve every tokenizer: a piece lasts from its first character to its last. Any CTC checkpoint whose
vocabulary is characters can align, also one that transcribes poorly: the text is given. A row of
FOLDER/SOURCE.jsonl is {"id": ..., "text": ..., "times_s": [one for each character of the text]}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.training.corpus import Clip
from edge_asr.vocabulary import Vocabulary

REACH_S = 0.12
"""How long the sound of a token lasts after the time of its last character, at most until the next token."""


def align_tokens(
    log_probs: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], blank_id: int
) -> npt.NDArray[np.int64] | None:
    """Find the frame at which each token begins on CTC's best path (Viterbi), i64 [N]; None if none fits.

    Args:
        log_probs: f32 [T, V].
        tokens: i64 [N], N >= 1, without blanks.
        blank_id: index of the blank.
    """
    n_frames, n_states = len(log_probs), 2 * len(tokens) + 1
    states = np.full(n_states, blank_id)
    states[1::2] = tokens
    # Two states may be skipped to a token that differs from the one before (Graves et al. 2006).
    may_skip = np.zeros(n_states, bool)
    may_skip[3::2] = tokens[1:] != tokens[:-1]
    scores = np.full(n_states, -np.inf, np.float32)
    scores[:2] = log_probs[0, states[:2]]
    steps = np.zeros((n_frames, n_states), np.int8)
    options = np.full((3, n_states), -np.inf, np.float32)
    for frame in range(1, n_frames):
        options[0] = scores
        options[1, 1:] = scores[:-1]
        options[2, 2:] = np.where(may_skip[2:], scores[:-2], -np.inf)
        steps[frame] = options.argmax(axis=0)
        scores = options.max(axis=0) + log_probs[frame, states]
    state = n_states - 1 if scores[-1] >= scores[-2] else n_states - 2
    if not np.isfinite(scores[state]):
        return None
    begins = np.zeros(n_states, np.int64)
    for frame in range(n_frames - 1, -1, -1):
        begins[state] = frame
        state -= int(steps[frame, state])
    return begins[1::2]


def write_alignment(file: TextIO, clip_id: str, text: str, times_s: Iterable[float]) -> None:
    """Write one row, with a time for each character of `text`."""
    row = {"id": clip_id, "text": text, "times_s": [round(float(time), 3) for time in times_s]}
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_alignments(path: Path) -> Iterator[tuple[str, str, npt.NDArray[np.float32]]]:
    """Yield (id, text, f32 [characters] times in seconds) of each row.

    Raises:
        ConfigError: the file cannot be read, or a row is not such an object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the alignments {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            times = np.asarray(row["times_s"], np.float32)
            if times.shape != (len(row["text"]),):
                raise ValueError("times_s needs one time for each character of text")
            yield str(row["id"]), str(row["text"]), times
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number} is not an alignment: {error}") from error


def load_spans(
    folder: str | Path,
    clips: Sequence[Clip],
    targets: Sequence[npt.NDArray[np.int64]],
    vocabulary: Vocabulary,
) -> list[npt.NDArray[np.float32] | None]:
    """Load when each token of each clip is said, f32 [N, 2] begin and end in seconds; None if unknown.

    A row counts only if its text is still that of the clip. Sources without a file in `folder` have none.
    """
    known: dict[tuple[str, str], tuple[str, npt.NDArray[np.float32]]] = {}
    for source in sorted({clip.source for clip in clips}):
        path = Path(folder) / f"{source}.jsonl"
        if path.is_file():
            known |= {(source, clip_id): (text, times) for clip_id, text, times in read_alignments(path)}
    spans: list[npt.NDArray[np.float32] | None] = []
    for clip, tokens in zip(clips, targets, strict=True):
        text, times = known.get((clip.source, clip.id), ("", np.zeros(0, np.float32)))
        spans.append(token_spans(tokens, vocabulary, text, times) if text == clip.text else None)
    if not any(span is not None for span in spans):
        raise ConfigError(f"{folder} holds no alignment of a training clip; files are named SOURCE.jsonl")
    return spans


def token_spans(
    tokens: npt.NDArray[np.int64],
    vocabulary: Vocabulary,
    text: str,
    times_s: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32] | None:
    """Derive begin and end of each token from the character times, f32 [N, 2]; None if they do not fit."""
    texts = [vocabulary.token_text(int(token)) for token in tokens]
    joined = "".join(texts)
    # A SentencePiece text begins with a space.
    place = len(text) - len(joined)
    if joined.strip() != text or place not in (0, -1):
        return None
    spans = np.zeros((len(tokens), 2), np.float32)
    for index, piece in enumerate(texts):
        first = place + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)
        place += len(piece)
        spans[index] = times_s[first], times_s[place - 1] + REACH_S
    spans[:-1, 1] = np.minimum(spans[:-1, 1], spans[1:, 0])
    return spans


def labels_from_spans(
    spans: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    n_frames: int,
    *,
    frame_s: float,
    blank_id: int,
) -> npt.NDArray[np.int64]:
    """Label one clip, i64 [n_frames]: each token for its span (at least one frame), blank elsewhere."""
    labels = np.full(n_frames, blank_id, np.int64)
    for (begin, end), token in zip(spans, tokens, strict=True):
        first = int(begin / frame_s)
        labels[first : max(first + 1, round(end / frame_s))] = token
    return labels
