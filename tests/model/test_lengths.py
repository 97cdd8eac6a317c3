"""A clip in a padded batch gives what it gives alone: every length from one frame up, any padding."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import N_MELS, VOCAB_SIZE, build_model

LONGEST = 37  # two frames past a whole number of eights and fours

KINDS: dict[str, dict[str, Any]] = {
    "dw_striding x8": {},
    "dw_striding x4": {"subsampling_factor": 4},
    "striding x4": {"subsampling": "striding", "subsampling_factor": 4, "xscaling": True},
    "striding x8": {"subsampling": "striding"},
    "convolution first": {"block_order": "convolution_first", "subsampling_factor": 4},
    "parallel": {"block_order": "parallel", "subsampling_factor": 4},
    "lstm": {"head": "lstm", "subsampling_factor": 4},
    "layer norm": {"conv_norm": "layer_norm", "subsampling_factor": 4},
    "linear attention": {"attention": "linear", "subsampling_factor": 4},
    "causal": {"conv_context": "causal", "subsampling_factor": 4},
    "look-ahead": {"conv_context": [3, 1], "subsampling_factor": 4},
    "linear attention, five terms": {"attention": "linear", "taylor_terms": 5, "n_heads": 4},
    "transformer": {
        "encoder": "transformer",
        "subsampling": "conv1d",
        "subsampling_factor": 2,
        "attention": "no_pos",
        "added_positions": True,
    },
    "no cmvn": {"cmvn": False, "subsampling_factor": 4},
    "long kernel": {"conv_kernel_size": 31, "subsampling_factor": 4},
}


@pytest.mark.parametrize("chunks", [{}, {"chunk_frames": 3}, {"chunk_frames": 2, "left_chunks": 1}])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_batch_equals_alone_at_every_length(kind: str, chunks: dict[str, int]) -> None:
    if kind.startswith("linear attention") and chunks:
        chunks = {}
    model = build_model(**KINDS[kind])
    factor = model.config.subsampling_factor
    torch.manual_seed(3)
    features = torch.randn(LONGEST + 1, LONGEST, N_MELS)
    lens = torch.arange(LONGEST + 1)
    padded = features.clone()
    for row in range(LONGEST + 1):
        padded[row, row:] = (7.0, float("nan"), float("inf"))[row % 3]
    batch, batch_lens = model(padded, lens, **chunks)
    assert batch.shape == (LONGEST + 1, -(-LONGEST // factor), VOCAB_SIZE)
    assert batch.dtype == torch.float32
    assert bool(torch.isfinite(batch).all())  # the row of length 0 and all padding included
    assert batch_lens.tolist() == [-(-length // factor) for length in range(LONGEST + 1)]
    for length in range(1, LONGEST + 1):
        alone, alone_lens = model(features[length : length + 1, :length], lens[length : length + 1], **chunks)
        assert alone.shape[1] == int(alone_lens) == int(batch_lens[length])
        torch.testing.assert_close(batch[length, : int(alone_lens)], alone[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.exp().sum(-1), torch.ones(alone.shape[:2]), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    lens=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    extra=st.integers(1, 40),
    chunk_frames=st.sampled_from([None, 1, 4]),
)
@torch.inference_mode()
def test_any_batch_equals_alone(lens: list[int], extra: int, chunk_frames: int | None) -> None:
    model = build_model()
    torch.manual_seed(sum(lens))
    features = torch.randn(len(lens), max(lens) + extra, N_MELS)
    batch, batch_lens = model(features, torch.tensor(lens), chunk_frames=chunk_frames)
    for row, length in enumerate(lens):
        if length:
            alone, _ = model(
                features[row : row + 1, :length], torch.tensor([length]), chunk_frames=chunk_frames
            )
            torch.testing.assert_close(batch[row, : int(batch_lens[row])], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_with_an_empty_row(kind: str) -> None:
    model = build_model(**KINDS[kind]).train()
    features = torch.randn(3, 40, N_MELS)
    features[1, 9:] = float("nan")
    log_probs, lens, _, _ = model.forward_train(features, torch.tensor([40, 9, 0]))
    loss = sum((log_probs[row, : int(lens[row])].sum() for row in range(3)), torch.zeros(()))
    torch.autograd.backward(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


@pytest.mark.parametrize("subsampling", ["striding", "dw_striding"])
@pytest.mark.parametrize("context", ["causal", "symmetric"])
def test_training_path_gives_what_inference_gives(subsampling: str, context: str) -> None:
    """Without dropout and batch statistics, train() only changes memory layout."""
    still = {"dropout": 0.0, "dropout_attention": 0.0, "conv_norm": "layer_norm"}
    model = build_model(subsampling=subsampling, conv_context=context, **still)
    features, lens = torch.randn(3, 50, N_MELS), torch.tensor([50, 23, 8])
    results = []
    for training in (False, True):
        model.train(training).zero_grad()
        log_probs, _ = model(features, lens)
        log_probs.square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([log_probs.detach(), *gradients])
    assert len(results[0]) > 30
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_batch_norm_sees_every_frame_of_the_tensor_in_training() -> None:
    convolution = build_model().encoder.layers[0].convolution.train()
    x = torch.randn(3, 9, 16)
    rows: list[torch.Tensor] = []
    handle = convolution.batch_norm.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    convolution(x, torch.ones(3, 9, dtype=torch.bool))
    handle.remove()
    gated = torch.nn.functional.glu(convolution.pointwise_in(convolution.norm(x)), dim=-1)
    padded = torch.nn.functional.pad(gated.transpose(1, 2), convolution.context)
    expected = convolution.depthwise(padded).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows[0], expected)


def test_bfloat16_autocast_stays_close() -> None:
    model = build_model()
    features, lens = torch.randn(3, 50, N_MELS), torch.tensor([50, 23, 0])
    expected, _ = model(features, lens, chunk_frames=2)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = model(features, lens, chunk_frames=2)
    assert actual.dtype == torch.float32
    # bfloat16 has 8 bits of mantissa; log-probs here are of the order of 5.
    torch.testing.assert_close(actual[:2, :3], expected[:2, :3], rtol=0, atol=0.3)
    assert bool(torch.isfinite(actual).all())
