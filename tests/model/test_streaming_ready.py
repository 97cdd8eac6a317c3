"""Causal convolutions and chunk masks together mean: the past never depends on the future."""

import pytest
import torch
from small_models import N_MELS, build_model

CHUNK = 2  # encoder frames


@pytest.mark.parametrize("subsampling", ["dw_striding", "striding"])
@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("left_chunks", [None, 0, 1])
@pytest.mark.parametrize("head", ["linear", "lstm"])
@torch.inference_mode()
def test_later_input_changes_no_earlier_chunk(
    subsampling: str, factor: int, left_chunks: int | None, head: str
) -> None:
    model = build_model(subsampling=subsampling, subsampling_factor=factor, conv_context="causal", head=head)
    n_chunks = 5
    span = CHUNK * factor  # input frames of a chunk
    features = torch.randn(1, n_chunks * span, N_MELS)
    lens = torch.tensor([n_chunks * span])
    before, _ = model(features, lens, chunk_frames=CHUNK, left_chunks=left_chunks)
    for k in range(n_chunks - 1):
        changed = features.clone()
        changed[:, (k + 1) * span :] = torch.randn(1, (n_chunks - k - 1) * span, N_MELS)
        after, _ = model(changed, lens, chunk_frames=CHUNK, left_chunks=left_chunks)
        end = (k + 1) * CHUNK
        torch.testing.assert_close(after[:, :end], before[:, :end], rtol=0, atol=1e-6)
        assert float((after[:, end:] - before[:, end:]).abs().max()) > 1e-2
        prefix, _ = model(
            features[:, : (k + 1) * span],
            torch.tensor([(k + 1) * span]),
            chunk_frames=CHUNK,
            left_chunks=left_chunks,
        )
        torch.testing.assert_close(prefix, before[:, :end], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_full_context_and_symmetric_convolutions_do_look_ahead() -> None:
    """The control: the test above would fail without the chunk mask, and without causal convolutions."""
    features, lens = torch.randn(1, 80, N_MELS), torch.tensor([80])
    changed = features.clone()
    changed[:, 64:] += 1.0
    for model, chunk_frames in ((build_model(conv_context="causal"), None), (build_model(), CHUNK)):
        before, _ = model(features, lens, chunk_frames=chunk_frames)
        after, _ = model(changed, lens, chunk_frames=chunk_frames)
        assert float((after[:, :8] - before[:, :8]).abs().max()) > 1e-3


@torch.inference_mode()
def test_left_chunks_bound_the_memory() -> None:
    """Two layers, kernel 1, one chunk to the left each: output chunk 4 sees chunks 2 to 4 only."""
    model = build_model(conv_context="causal", conv_kernel_size=1)
    span = CHUNK * 8
    features, lens = torch.randn(1, 5 * span, N_MELS), torch.tensor([5 * span])
    changed = features.clone()
    # The subsampling's own window reaches 7 frames to the left of a chunk.
    changed[:, : 2 * span - 8] += 1.0
    before, _ = model(features, lens, chunk_frames=CHUNK, left_chunks=1)
    after, _ = model(changed, lens, chunk_frames=CHUNK, left_chunks=1)
    torch.testing.assert_close(after[:, 4 * CHUNK :], before[:, 4 * CHUNK :], rtol=0, atol=1e-6)
    assert float((after[:, 2 * CHUNK : 3 * CHUNK] - before[:, 2 * CHUNK : 3 * CHUNK]).abs().max()) > 1e-3


@torch.inference_mode()
def test_one_chunk_is_full_context() -> None:
    model = build_model()
    features, lens = torch.randn(2, 60, N_MELS), torch.tensor([60, 31])
    full, _ = model(features, lens)
    chunked, _ = model(features, lens, chunk_frames=1000)
    torch.testing.assert_close(chunked[:, :4], full[:, :4], rtol=0, atol=1e-6)
