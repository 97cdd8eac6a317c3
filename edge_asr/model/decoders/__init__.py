"""Attention decoders over an encoder: what the transcript so far and the whole clip say of the next token.

It exposes the configuration (no torch needed) and, on first use, the networks.
What this package does not do: search (`edge_asr.runtime.decoding`), compute losses (`edge_asr.training`).
"""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.model.decoders.base import AttentionDecoder as AttentionDecoder
    from edge_asr.model.decoders.choose import make_decoder as make_decoder
    from edge_asr.model.decoders.config import DecoderConfig as DecoderConfig
    from edge_asr.model.decoders.pre_norm import PreNormDecoder as PreNormDecoder
    from edge_asr.model.decoders.recurrent import RecurrentDecoder as RecurrentDecoder
    from edge_asr.model.decoders.transformer import TransformerDecoder as TransformerDecoder

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "AttentionDecoder": "base",
        "DecoderConfig": "config",
        "PreNormDecoder": "pre_norm",
        "RecurrentDecoder": "recurrent",
        "TransformerDecoder": "transformer",
        "make_decoder": "choose",
    },
)
