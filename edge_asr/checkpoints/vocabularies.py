"""The blank's place: other projects have it first or anywhere, our models and graphs have it last.

It moves the blank in weights and tokens, and puts outputs back into the original order for comparisons.
What this file does not do: read token files (each loader does).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, cat

from edge_asr.errors import CheckpointError, VocabularyError
from edge_asr.vocabulary import BLANK_TOKEN, WORD_BOUNDARY, Vocabulary, VocabularyKind


def move_blank_last(tensor: Tensor, blank_id: int) -> Tensor:
    """Move row `blank_id` of rows [V, ...] to the end, and keep the others in order."""
    return cat((tensor[:blank_id], tensor[blank_id + 1 :], tensor[blank_id : blank_id + 1]))


def original_order(log_probs: npt.NDArray[np.float32], source_blank_id: int) -> npt.NDArray[np.float32]:
    """Our log-probs [..., V] in the order of the original's outputs."""
    blank = log_probs[..., -1:]
    before, after = log_probs[..., :source_blank_id], log_probs[..., source_blank_id:-1]
    return np.concatenate([before, blank, after], axis=-1)


def original_ids(ids: Iterable[int], source_blank_id: int) -> list[int]:
    """Our token ids, blanks not among them, as the original counts them."""
    return [i if i < source_blank_id else i + 1 for i in ids]


def vocabulary_from_tokens(
    tokens: Sequence[str], blank_id: int, kind: VocabularyKind, where: str
) -> Vocabulary:
    """A vocabulary with its blank moved last.

    Args:
        tokens: in the order of the original's outputs, the blank among them; white space becomes U+2581.
        blank_id: the blank's place.
        kind: "char" for characters (and `<...>` specials), "sentencepiece" for pieces.
        where: the file they came from, for messages.

    Raises:
        CheckpointError: tokens that cannot be a vocabulary.
    """
    if not 0 <= blank_id < len(tokens):
        raise CheckpointError(f"{where}: the blank is token {blank_id} of {len(tokens)}; the two do not fit")
    spoken = [re.sub(r"\s", WORD_BOUNDARY, token) for i, token in enumerate(tokens) if i != blank_id]
    try:
        return Vocabulary(kind=kind, tokens=(*spoken, BLANK_TOKEN), blank_id=len(spoken))
    except VocabularyError as error:
        raise CheckpointError(f"{where}: {error}") from error
