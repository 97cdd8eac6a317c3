"""The decoder that a configuration asks for."""

from collections.abc import Callable

from edge_asr.model.decoders.base import AttentionDecoder
from edge_asr.model.decoders.config import DecoderConfig
from edge_asr.model.decoders.pre_norm import PreNormDecoder
from edge_asr.model.decoders.recurrent import RecurrentDecoder
from edge_asr.model.decoders.transformer import TransformerDecoder

_DECODERS: dict[str, Callable[[DecoderConfig, int], AttentionDecoder]] = {
    "recurrent": RecurrentDecoder,
    "transformer": TransformerDecoder,
    "pre_norm": PreNormDecoder,
}


def make_decoder(config: DecoderConfig, d_model: int, vocab_size: int) -> AttentionDecoder:
    """Make a decoder over an encoder of width `d_model` with `vocab_size` CTC outputs.

    Raises:
        ConfigError: the numbers do not fit together.
    """
    complete = config.complete(d_model, vocab_size)
    return _DECODERS[complete.kind](complete, d_model)
