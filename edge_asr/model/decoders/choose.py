"""The decoder that a configuration asks for."""

from edge_asr.model.decoders.base import AttentionDecoder
from edge_asr.model.decoders.config import DecoderConfig
from edge_asr.model.decoders.recurrent import RecurrentDecoder
from edge_asr.model.decoders.transformer import TransformerDecoder


def make_decoder(config: DecoderConfig, d_model: int, vocab_size: int) -> AttentionDecoder:
    """Make a decoder over an encoder of width `d_model` with `vocab_size` CTC outputs.

    Raises:
        ConfigError: the numbers do not fit together.
    """
    complete = config.complete(d_model, vocab_size)
    if complete.kind == "recurrent":
        return RecurrentDecoder(complete, d_model)
    return TransformerDecoder(complete, d_model)
