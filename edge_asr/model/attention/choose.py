"""The attention module and the position encoding that a configuration asks for."""

from typing import Any

import torch
from torch import Tensor, nn

from edge_asr.errors import ConfigError
from edge_asr.model.attention.absolute import AbsolutePosAttention, AbsolutePositions
from edge_asr.model.attention.legacy import LegacyPositions, LegacyRelPosAttention
from edge_asr.model.attention.linear import TaylorAttention
from edge_asr.model.attention.local import LocalAttention, LocalPositions
from edge_asr.model.attention.plain import PlainAttention
from edge_asr.model.attention.relative import RelativePositions, RelPosAttention
from edge_asr.model.attention.rotary import RotaryAttention, RotaryPositions
from edge_asr.model.config import ConformerConfig


class NoPositions(nn.Module):
    """Positions for attention without positions: an empty tensor, whatever the length."""

    def forward(self, n_frames: int) -> Tensor:
        """float32 (0,)."""
        return torch.empty(0)


def positions_from_config(config: ConformerConfig) -> nn.Module:
    """Make the module that computes positions once for all layers: n_frames -> a tensor, or a tuple."""
    if config.attention == "rel_pos":
        return RelativePositions(config.d_model)
    if config.attention == "rel_pos_local":
        return LocalPositions(config)
    if config.attention == "rel_pos_legacy":
        return LegacyPositions(config)
    if config.attention == "absolute_pos":
        return AbsolutePositions(config.d_model)
    if config.attention == "rotary":
        return RotaryPositions(config)
    return NoPositions()


def positions_as(dtype: torch.dtype, positions: Any) -> Any:
    """Position encodings in the dtype of the frames.

    Encodings are computed in float32, as every source project does, also where the network runs in float64.
    """
    if isinstance(positions, tuple):
        return tuple(positions_as(dtype, part) for part in positions)
    return positions.to(dtype) if positions.is_floating_point() else positions


def attention_from_config(config: ConformerConfig) -> nn.Module:
    """The attention module that the configuration names; all are called as `RelPosAttention.forward`."""
    if config.attention == "rel_pos":
        return RelPosAttention(config)
    if config.attention == "linear":
        return TaylorAttention(config)
    if config.attention == "rel_pos_local":
        return LocalAttention(config)
    if config.attention == "rel_pos_legacy":
        return LegacyRelPosAttention(config)
    if config.attention == "absolute_pos":
        return AbsolutePosAttention(config)
    if config.attention == "rotary":
        return RotaryAttention(config)
    return PlainAttention(config)


def check_chunking(config: ConformerConfig, chunk_frames: int | None, left_chunks: int | None) -> None:
    """Refuse chunk geometry that means nothing, or that the attention kind cannot honor.

    Raises:
        ConfigError: for sizes out of range, a left context without chunks, or chunks with linear attention.
    """
    if chunk_frames is None:
        if left_chunks is not None:
            raise ConfigError(f"left_chunks is {left_chunks} without chunk_frames; give both, or neither")
        return
    if chunk_frames < 1:
        raise ConfigError(f"chunk_frames must be at least 1 encoder frame, got {chunk_frames}")
    if left_chunks is not None and left_chunks < 0:
        raise ConfigError(f"left_chunks must be 0 or more (None: unlimited), got {left_chunks}")
    if config.attention == "linear":
        raise ConfigError(
            'attention "linear" sees the whole clip and takes no chunks; use attention "rel_pos"'
        )
    if config.attention == "rel_pos_local":
        raise ConfigError(
            'attention "rel_pos_local" has its own context and takes no chunks; use attention "rel_pos"'
        )
