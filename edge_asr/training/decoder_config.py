"""The `decoder` section of the training YAML, and the model's decoder that follows from it.

What this file does not do: the other sections (config.py), the network (`edge_asr.model.decoders`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_asr.errors import ConfigError
from edge_asr.model.config import ConformerConfig
from edge_asr.model.decoders.config import DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSection:
    """An attention decoder beside CTC, taught by cross-entropy to continue the true transcript.

    kind: recurrent (an LSTM) or transformer; null for none, or, with init_from, for what that one has.
    n_layers: layers of the LSTM, or Transformer blocks.
    d_model: width; the encoder's when null.
    n_heads: attention heads.
    d_feed_forward: inner width of the feed-forward modules; twice d_model when null.
    dropout: probability.
    ctc_weight: share of CTC in the loss, the rest is the decoder's. 1 makes no decoder. 0 trains without
        CTC, and such a model transcribes whole clips with `--decoder attention` only.
    label_smoothing: share of the decoder's target that is spread over all tokens.
    freeze_encoder: train the decoder alone, over the encoder and CTC head of init_from as they are.
    """

    kind: Literal["recurrent", "transformer"] | None = None
    n_layers: int = 2
    d_model: int | None = None
    n_heads: int = 4
    d_feed_forward: int | None = None
    dropout: float = 0.1
    ctc_weight: float = 0.3
    label_smoothing: float = 0.1
    freeze_encoder: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.ctc_weight <= 1.0:
            raise ConfigError(f"ctc_weight must be from 0 to 1, got {self.ctc_weight}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing must be from 0 to below 1, got {self.label_smoothing}")
        if self.freeze_encoder and self.ctc_weight == 1.0:
            raise ConfigError(
                "freeze_encoder with ctc_weight 1 leaves nothing to train; set freeze_encoder: false or a "
                "lower ctc_weight"
            )
        self.shape()

    def shape(self) -> DecoderConfig | None:
        """Describe the decoder that the section asks for.

        Raises:
            ConfigError: a value out of range.
        """
        if self.kind is None or self.ctc_weight == 1.0:
            return None
        return DecoderConfig(
            kind=self.kind,
            n_layers=self.n_layers,
            d_model=self.d_model,
            n_heads=self.n_heads,
            d_feed_forward=self.d_feed_forward,
            dropout=self.dropout,
        )

    def choose(self, initial: ConformerConfig | None) -> DecoderConfig | None:
        """Choose between that decoder and the one of a checkpoint that training begins with.

        Raises:
            ConfigError: the checkpoint has a decoder that cannot be trained.
        """
        if initial is not None and initial.right_decoder is not None:
            raise ConfigError(
                "init_from has a right_decoder, which edge-asr cannot train; begin with another checkpoint"
            )
        if self.kind is None and initial is not None and self.ctc_weight < 1.0:
            return initial.decoder
        return self.shape()
