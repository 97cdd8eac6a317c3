"""Which frames are real, and which may see each other.

Lengths and chunk geometry become masks once per forward pass. Masks depend on shapes and integers only, never
on the content of a tensor, so each one exports to ONNX with dynamic axes.
"""

import torch
from torch import Tensor

from edge_asr.model.config import ConformerConfig

# Large enough that exp() is exactly 0 in float32, and still finite in float16.
MASKED_SCORE = -1e4


def valid_frames(lens: Tensor, n_frames: int, stride: int = 1, first: int = 1) -> Tensor:
    """Return True for the frames that lie before the end of their row.

    Args:
        lens: int64 (B,), in input frames.
        n_frames: length of the time axis.
        stride: input frames per frame of the axis; frame i begins at i * stride, so ceil(lens / stride)
            are valid. (A product: in ONNX a floored integer division is a detour through float.)
        first: input frames that frame 0 asks for (`edge_asr.frames`); frame i asks for i * stride + first.

    Returns:
        bool (B, n_frames).
    """
    begins = torch.arange(n_frames, device=lens.device) * stride
    if first != 1:
        begins = begins + (first - 1)
    return begins[None, :] < lens[:, None]


def chunk_mask(n_frames: int, chunk_frames: int, left_chunks: int | None, device: torch.device) -> Tensor:
    """Return True where frame i may see frame j (column): chunk(j) in [chunk(i) - left_chunks, chunk(i)].

    Returns:
        bool (n_frames, n_frames).
    """
    chunk = torch.arange(n_frames, device=device) // chunk_frames
    behind = chunk[:, None] - chunk[None, :]  # (T, T), chunks from j up to i
    mask = behind >= 0
    if left_chunks is not None:
        mask = mask & (behind <= left_chunks)
    return mask


def band_mask(n_frames: int, left: int, right: int, device: torch.device) -> Tensor:
    """Return True where frame i (row) may see frame j (column): -right <= i - j <= left; -1 is unlimited.

    Returns:
        bool (n_frames, n_frames).
    """
    frame = torch.arange(n_frames, device=device)
    behind = frame[:, None] - frame[None, :]  # (T, T)
    mask = torch.ones_like(behind, dtype=torch.bool)
    if left >= 0:
        mask = mask & (behind <= left)
    if right >= 0:
        mask = mask & (behind >= -right)
    return mask


def context_mask(config: ConformerConfig, n_frames: int, device: torch.device) -> Tensor | None:
    """Return which frames `attention_context` lets see each other; None means all.

    Source: NeMo, nemo/collections/asr/modules/conformer_encoder.py, `_create_masks`.
    """
    if config.attention_context is None:
        return None
    left, right = config.attention_context
    if config.attention_context_style == "regular":
        return None if left < 0 and right < 0 else band_mask(n_frames, left, right, device)
    return chunk_mask(n_frames, right + 1, None if left < 0 else left // (right + 1), device)


def attention_bias(
    valid: Tensor, chunk_frames: int | None, left_chunks: int | None, context: Tensor | None = None
) -> Tensor:
    """Return the bias of the attention scores: 0 where a key may be seen, MASKED_SCORE where not.

    A row without any visible key gets the same number everywhere, so its softmax is finite.

    Args:
        valid: bool (B, T).
        chunk_frames, left_chunks: see `chunk_mask`; they replace `context`.
        context: bool (T, T), see `context_mask`.

    Returns:
        float32 (B, 1, 1, T) for full context, (B, 1, T, T) with chunks or a context.
    """
    visible = valid[:, None, None, :]
    if chunk_frames is not None:
        context = chunk_mask(valid.shape[1], chunk_frames, left_chunks, valid.device)
    if context is not None:
        visible = visible & context[None, None]
    return (~visible).to(torch.float32) * MASKED_SCORE
