"""Shared by the makers of decoder fixtures: an attention decoder that has something to say, and its arrays.

Keys of golden.npz, besides those of `common.Fixture`: `clip<i>_enc` [1, T', D] (what the decoder attends to);
`clip<i>_forced` [M, U], texts without beginning and end, -1 behind; `clip<i>_dec` [M, U + 1, V], what the
decoder says after the beginning and each token of them, natural logarithm; `clip<i>_dec_right` the same of a
right-to-left decoder over the reversed texts. Rows past a length mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from golden.make.common import Fixture, center_head

#: `decode(encoded [1, T', D], tokens [N, U] beginning included, lengths [N]) -> logits [N, U, V]`.
Decode = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def enliven(
    decoder: Any, decode: Decode, encoded: Sequence[Tensor], *, sos: int, eos: int, seed: int, end_bias: float
) -> None:
    """Make a random decoder look at the clip, and end after some tokens.

    A random encoder gives nearly the same vector for every frame, of which attention makes an average. So
    the queries and keys of the attention to it are scaled up, and the output layer is centered on what random
    texts give, as `center_head` does for CTC.
    """
    for name, parameter in decoder.named_parameters():
        if "src_attn.linear_q.weight" in name or "src_attn.linear_k.weight" in name:
            parameter.mul_(4.0)
        elif "src_attn.linear_v.weight" in name:
            parameter.mul_(6.0)
    output: nn.Linear = decoder.output_layer
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, output.out_features - 1, (8, 16), generator=generator)
    tokens[:, 0] = sos
    hidden: list[Tensor] = []
    hook = output.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    for memory in encoded:
        decode(memory, tokens, torch.full((8,), 16))
    hook.remove()
    center_head(output, hidden, spread=4.0)
    output.bias[0] -= 30.0  # the blank, which no trained decoder says
    output.bias[eos] += end_bias


def padded_tokens(rows: Sequence[Sequence[int]], *before: int) -> Tensor:
    """Rows of tokens behind `before` as one batch, -1 behind: int64 [N, U]."""
    texts = [torch.tensor([*before, *row], dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)


def add_teacher_forcing(
    fixture: Fixture, key: str, decode: Decode, encoded: Tensor, rows: Sequence[Sequence[int]], sos: int
) -> None:
    """Add what the decoder says of whole texts in one run, padded."""
    tokens = padded_tokens(rows, sos)
    lengths = (tokens >= 0).sum(1)
    # Padding as the originals have it: whatever, never looked at.
    logits = decode(encoded, tokens.clamp(min=0), lengths)
    fixture.add(key, torch.log_softmax(logits, dim=-1))


def same_in_float64(model: Any, search: Callable[[], Any], results: Any) -> bool:
    """Whether the original finds the same in float64: no tie is decided by rounding."""
    model.double()
    try:
        return bool(search() == results)
    finally:
        model.float()


def ids(tokens: Any) -> np.ndarray[Any, Any]:
    """Tokens as int64."""
    return np.asarray([int(token) for token in tokens], np.int64)
