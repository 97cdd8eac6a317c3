"""The interface of every attention decoder, and the parts that ours are made of.

A decoder is run in three steps: `cross` once for a clip, `initial_state` once for a hypothesis, and `advance`
with one or more tokens. Any cutting of the tokens gives the same. Nothing here branches on tensor content, so
each step exports to ONNX.
What this file does not do: hold a whole decoder (recurrent.py, transformer.py).
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.errors import ConfigError
from edge_asr.model.decoders.config import DecoderConfig
from edge_asr.model.masks import MASKED_SCORE, attention_bias, valid_frames

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
    "selu": nn.SELU,
}


class AttentionDecoder(nn.Module):
    """What every kind of decoder can do.

    Attributes:
        config: complete (`DecoderConfig.complete`).
        sos_id, eos_id: the tokens before the first and after the last one.
        n_tokens: number of outputs V, both included.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        values = (config.d_model, config.d_feed_forward, config.n_tokens, config.sos_id, config.eos_id)
        if None in values:
            raise ConfigError("the decoder's configuration has gaps; fill them with DecoderConfig.complete")
        self.config = config
        self.d_model, self.d_feed_forward, self.n_tokens, self.sos_id, self.eos_id = cast(
            "tuple[int, int, int, int, int]", values
        )

    def cross(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Compute what the steps need of a clip, once.

        Args:
            memory: float (B, T, D), the encoder's output.

        Returns:
            Keys and values, float (L, B, H, T, d) each, with L layers that attend to the clip.
        """
        raise NotImplementedError

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """Make the state before the first token, of `batch` rows."""
        raise NotImplementedError

    def advance(
        self, tokens: Tensor, state: tuple[Tensor, ...], cross: tuple[Tensor, ...], memory_lengths: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read tokens and say what follows each of them.

        Args:
            tokens: int64 (B, U), U >= 1; the first of all is `sos_id`.
            state: that of `initial_state`, or of the last call.
            cross: that of `cross`, of B clips, or of one that all rows share.
            memory_lengths: int64 (B,) or (1,), valid frames of the memory.

        Returns:
            Natural log-probabilities, float32 (B, U, V) (float64 where the network runs in float64), and
            the state after the last token.
        """
        raise NotImplementedError

    def forward(
        self, memory: Tensor, memory_lengths: Tensor, tokens: Tensor, token_lengths: Tensor | None = None
    ) -> Tensor:
        """Teacher forcing: `advance` over whole transcripts, from the initial state.

        Args:
            memory, memory_lengths: the encoder's outputs (B, T, D) and their lengths (B,).
            tokens: int64 (B, U), `sos_id` and the transcript.
            token_lengths: not needed, because no output depends on later tokens.

        Returns:
            See `advance`; what follows the end of a row means nothing.
        """
        state = self.initial_state(tokens.shape[0])
        return self.advance(tokens, state, self.cross(memory), memory_lengths)[0]


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities in float32; in float64 where the network runs in float64."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def memory_bias(memory_lengths: Tensor, n_frames: int) -> Tensor:
    """Return the bias of scores of a memory's frames: float32 (B, 1, 1, T)."""
    return attention_bias(valid_frames(memory_lengths, n_frames), None, None)


class SubBlock(nn.Module):
    """LayerNorm(x + module(LayerNorm(x))), with dropout on what the module adds."""

    def __init__(self, config: DecoderConfig, d_model: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.norm_out = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, module: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, U, D) -> (B, U, D)."""
        return cast(Tensor, self.norm_out(x + self.dropout(module(self.norm_in(x)))))


class Attention(nn.Module):
    """Multi-head attention whose keys and values are computed apart from its queries."""

    def __init__(self, config: DecoderConfig, d_model: int, d_memory: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = config.n_heads, d_model // config.n_heads
        self.query = nn.Linear(d_model, d_model)
        self.keys_values = nn.Linear(d_memory, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(config.dropout)

    def recall(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of a memory (B, T, M): (B, H, T, d) each."""
        key, value = self.keys_values(memory).unflatten(-1, (2, self.n_heads, self.d_head)).unbind(2)
        return key.transpose(1, 2), value.transpose(1, 2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend.

        Args:
            x: float (B, U, D).
            key, value: float (B or 1, H, T, d), of `recall`.
            bias: float, added to the scores (B, H, U, T).

        Returns:
            float (B, U, D).
        """
        query = self.query(x).unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2) * self.d_head**-0.5
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)) + bias, dim=-1)
        context = torch.matmul(self.dropout(weights), value)  # (B, H, U, d)
        return cast(Tensor, self.out(context.transpose(1, 2).flatten(2)))


class FeedForward(nn.Sequential):
    """Expansion, activation, dropout, projection: (B, U, D) -> (B, U, D)."""

    def __init__(self, config: DecoderConfig, d_model: int, d_inner: int) -> None:
        super().__init__(
            nn.Linear(d_model, d_inner),
            _ACTIVATIONS[config.activation](),
            nn.Dropout(config.dropout),
            nn.Linear(d_inner, d_model),
        )


class CrossBlock(nn.Module):
    """Attention to the clip, then feed-forward, each in a `SubBlock`."""

    def __init__(self, config: DecoderConfig, d_model: int, d_memory: int, d_inner: int) -> None:
        super().__init__()
        self.attention = Attention(config, d_model, d_memory)
        self.attention_block = SubBlock(config, d_model)
        self.feed_forward = FeedForward(config, d_model, d_inner)
        self.feed_forward_block = SubBlock(config, d_model)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """See `Attention.forward`."""
        x = self.attention_block(x, lambda x: self.attention(x, key, value, bias))
        return cast(Tensor, self.feed_forward_block(x, self.feed_forward))


def stack_pairs(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack keys and values of all layers: (L, B, H, T, d) each."""
    return torch.stack([key for key, _ in pairs]), torch.stack([value for _, value in pairs])


def causal_bias(n_before: int, n_new: int, device: torch.device) -> Tensor:
    """Return the bias of scores of new tokens over all: none sees a later one. float32 (N, before + N)."""
    position = torch.arange(n_before + n_new, device=device)
    return (position[None, :] > position[n_before:, None]).to(torch.float32) * MASKED_SCORE
