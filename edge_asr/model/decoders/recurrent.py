"""The recurrent decoder: an LSTM over the tokens, whose outputs attend to the clip."""

from typing import cast

from torch import Tensor, nn

from edge_asr.model.decoders.base import AttentionDecoder, CrossBlock, log_softmax, memory_bias, stack_pairs
from edge_asr.model.decoders.config import DecoderConfig


class RecurrentDecoder(AttentionDecoder):
    """Embedding, LayerNorm, LSTM, attention to the clip and feed-forward, LayerNorm, projection.

    The clip does not enter the LSTM, so that a whole transcript is one call. The state is the hidden and the
    cell state, float (L, B, D) each.
    """

    def __init__(self, config: DecoderConfig, d_memory: int) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(self.n_tokens, self.d_model)
        self.norm_in = nn.LayerNorm(self.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.n_layers > 1 else 0.0
        self.lstm = nn.LSTM(self.d_model, self.d_model, config.n_layers, batch_first=True, dropout=between)
        self.block = CrossBlock(config, self.d_model, d_memory, self.d_feed_forward)
        self.norm_out = nn.LayerNorm(self.d_model, eps=config.norm_eps)
        self.projection = nn.Linear(self.d_model, self.n_tokens)

    def cross(self, memory: Tensor) -> tuple[Tensor, ...]:
        """See `AttentionDecoder.cross`; one layer attends."""
        return stack_pairs([self.block.attention.recall(memory)])

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """See `AttentionDecoder.initial_state`."""
        zeros = self.embedding.weight.new_zeros(self.config.n_layers, batch, self.d_model)
        return zeros, zeros.clone()

    def advance(
        self, tokens: Tensor, state: tuple[Tensor, ...], cross: tuple[Tensor, ...], memory_lengths: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `AttentionDecoder.advance`."""
        x = self.dropout(self.norm_in(self.embedding(tokens)))
        x, (hidden, cell) = self.lstm(x, cast("tuple[Tensor, Tensor]", state))
        keys, values = cross
        x = self.block(x, keys[0], values[0], memory_bias(memory_lengths, keys.shape[3]))
        return log_softmax(self.projection(self.norm_out(x))), (hidden, cell)
