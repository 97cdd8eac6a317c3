"""The whole model: intermediate CTC, CMVN, block orders and dropout."""

import numpy as np
import pytest
import torch
from small_models import N_MELS, VOCAB_SIZE, build_model

from edge_asr.errors import ConfigError
from edge_asr.model import ConformerCTC
from edge_asr.model.encoder import ConformerBlock


@pytest.mark.parametrize("head", ["linear", "lstm"])
@torch.inference_mode()
def test_intermediate_ctc_is_the_shallower_model(head: str) -> None:
    """The output of layer k through the shared head is what a model cut after layer k computes."""
    model = build_model(n_layers=4, intermediate_ctc_layers=[1, 3], head=head)
    features, lens = torch.randn(2, 50, N_MELS), torch.tensor([50, 20])
    log_probs, out_lens, intermediate, encoded = model.forward_train(features, lens, chunk_frames=2)
    expected, expected_lens = model(features, lens, chunk_frames=2)
    assert torch.equal(log_probs, expected)
    assert torch.equal(out_lens, expected_lens)
    assert torch.equal(model.head(encoded), expected)
    assert len(intermediate) == 2
    for layers, actual in zip((1, 3), intermediate, strict=True):
        cut = build_model(n_layers=layers, head=head)
        weights = {name: value for name, value in model.state_dict().items() if name in cut.state_dict()}
        cut.load_state_dict(weights)
        torch.testing.assert_close(actual, cut(features, lens, chunk_frames=2)[0], rtol=0, atol=1e-6)


@torch.inference_mode()
def test_cmvn_equals_normalizing_before_the_model() -> None:
    model = build_model()
    assert model.cmvn is not None
    mean, std = np.linspace(-8, -2, N_MELS), np.linspace(0.5, 4, N_MELS)
    model.set_cmvn(mean, std)
    plain = ConformerCTC(build_model(cmvn=False).config).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("cmvn.")})
    features = torch.randn(2, 33, N_MELS) * 3 - 5
    lens = torch.tensor([33, 11])
    normalized = ((features.numpy() - mean) / std).astype(np.float32)
    expected, out_lens = plain(torch.from_numpy(normalized), lens)
    actual, _ = model(features, lens)
    for row in range(2):
        end = int(out_lens[row])
        torch.testing.assert_close(actual[row, :end], expected[row, :end], rtol=0, atol=1e-5)


def test_bad_cmvn_is_refused() -> None:
    model = build_model()
    ones = np.ones(N_MELS)
    with pytest.raises(ConfigError, match=r"mean must have 20 values.*\(3,\)"):
        model.set_cmvn(np.ones(3), ones)
    with pytest.raises(ConfigError, match="every std above 0"):
        model.set_cmvn(ones, 0 * ones)
    with pytest.raises(ConfigError, match="must be finite"):
        model.set_cmvn(np.nan * ones, ones)
    with pytest.raises(ConfigError, match="cmvn=True"):
        build_model(cmvn=False).set_cmvn(ones, ones)


@torch.inference_mode()
def test_block_orders_differ_and_follow_their_definition() -> None:
    x = torch.randn(1, 6, 16)
    for order in ("attention_first", "convolution_first", "parallel"):
        model = build_model(block_order=order)
        block = model.encoder.layers[0]
        assert isinstance(block, ConformerBlock)
        valid = torch.ones(1, 6, dtype=torch.bool)
        rest = (torch.zeros(1, 1, 1, 6), model.encoder.positions(6), valid)
        h = x + block.feed_forward_in(x) / 2

        def attend(h: torch.Tensor) -> torch.Tensor:
            attended: torch.Tensor = block.attention(block.attention_norm(h), *rest)  # noqa: B023
            return attended

        def convolve(h: torch.Tensor) -> torch.Tensor:
            convolved: torch.Tensor = block.convolution(h, valid)  # noqa: B023
            return convolved

        if order == "attention_first":
            h = h + attend(h)
            h = h + convolve(h)
        elif order == "convolution_first":
            h = h + convolve(h)
            h = h + attend(h)
        else:
            h = h + attend(h) + convolve(h)
        h = block.final_norm(h + block.feed_forward_out(h) / 2)
        torch.testing.assert_close(block(x, *rest), h, rtol=0, atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    model = build_model(conv_norm="layer_norm", dropout=0.3)
    features, lens = torch.randn(1, 40, N_MELS), torch.tensor([40])
    assert torch.equal(model(features, lens)[0], model(features, lens)[0])
    model.train()
    assert not torch.equal(model(features, lens)[0], model(features, lens)[0])


def test_a_model_can_learn_a_sequence() -> None:
    """Fifty steps of CTC on one random clip bring the loss from 6 below 0.5."""
    torch.manual_seed(0)
    model = build_model(
        dropout=0.0, dropout_attention=0.0, conv_norm="layer_norm", subsampling_factor=4
    ).train()
    features, lens = torch.randn(1, 80, N_MELS), torch.tensor([80])
    targets = torch.tensor([[1, 2, 3, 3, 4]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(50):
        log_probs, out_lens = model(features, lens)
        loss = torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1), targets, out_lens, torch.tensor([5]), blank=VOCAB_SIZE - 1
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert loss.item() < 0.5
