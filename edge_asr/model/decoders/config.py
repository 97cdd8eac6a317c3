"""The shape of an attention decoder: one frozen, validated, JSON-serializable description. It needs no torch.

What this file does not do: know the encoder; a field of `edge_asr.model.config` holds a description.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from edge_asr.errors import ConfigError
from edge_asr.records import check_fields

LARGEST_WIDTH = 1 << 16
"""Largest accepted width or number of tokens; larger values are treated as hostile files."""

LARGEST_DEPTH = 256
"""Most layers and heads."""

DecoderKind = Literal["recurrent", "transformer", "pre_norm"]
Activation = Literal["silu", "gelu", "relu", "tanh", "hardtanh", "selu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything that decides a decoder's tensors and arithmetic.

    The tokens are those of the CTC vocabulary, by the same numbers; the decoder never gives the blank.

    Attributes:
        kind: "recurrent" (an LSTM whose outputs attend to the clip), "transformer" (blocks of masked
            self-attention, attention to the clip and feed-forward) or "pre_norm" (the blocks of ESPnet and
            WeNet).
        n_layers: layers of the LSTM, or blocks.
        d_model: width; None is the encoder's.
        n_heads: attention heads.
        d_feed_forward: inner width of the feed-forward modules; None is twice d_model.
        activation: that of the feed-forward modules.
        norm_eps: epsilon of every LayerNorm.
        dropout: probability, on embeddings, attention weights and what each module adds.
        n_tokens: number of outputs, beginning and end included; None is one more than the CTC vocabulary.
        sos_id, eos_id: the tokens before the first and after the last one; None is the last output for both.

    Raises:
        ConfigError: for a value outside its range; the message names the field.
    """

    kind: DecoderKind = "transformer"
    n_layers: int = 2
    d_model: int | None = None
    n_heads: int = 2
    d_feed_forward: int | None = None
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    n_tokens: int | None = None
    sos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "the decoder")
        for names, least, most in (
            (("n_layers", "n_heads"), 1, LARGEST_DEPTH),
            (("d_model", "d_feed_forward"), 1, LARGEST_WIDTH),
            (("n_tokens",), 2, LARGEST_WIDTH),
            (("sos_id", "eos_id"), 0, (self.n_tokens or LARGEST_WIDTH) - 1),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not least <= value <= most:
                    raise ConfigError(f"decoder.{name} must be from {least} to {most}, got {value}")
        if self.d_model is not None and (self.d_model % self.n_heads or self.d_model % 2):
            raise ConfigError(
                f"decoder.d_model must be even and a multiple of decoder.n_heads, got {self.d_model} with "
                f"{self.n_heads} heads"
            )
        if self.norm_eps <= 0:
            raise ConfigError(f"decoder.norm_eps must be a number above 0, got {self.norm_eps!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"decoder.dropout must be at least 0 and below 1, got {self.dropout!r}")

    def complete(self, d_model: int, vocab_size: int) -> DecoderConfig:
        """Fill in what follows from an encoder of width `d_model` and `vocab_size` CTC outputs.

        Raises:
            ConfigError: the numbers do not fit together.
        """
        width = self.d_model or d_model
        n_tokens = vocab_size + 1 if self.n_tokens is None else self.n_tokens
        if n_tokens < vocab_size - 1:  # a decoder may lack the blank
            raise ConfigError(
                f"decoder.n_tokens must be at least {vocab_size - 1}, the CTC vocabulary without its blank, "
                f"got {n_tokens}"
            )
        return dataclasses.replace(
            self,
            d_model=width,
            d_feed_forward=self.d_feed_forward or 2 * width,
            n_tokens=n_tokens,
            sos_id=n_tokens - 1 if self.sos_id is None else self.sos_id,
            eos_id=n_tokens - 1 if self.eos_id is None else self.eos_id,
        )
