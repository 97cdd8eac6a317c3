"""Wrong graphs that a proof must tell from rounding, and right ones that it must let pass.

Each fault is planted in a copy of the network, which then stands for the exported graph: float32, in padded
batches, against the original in float64. Models are random, their norm statistics and biases away from the
defaults. The smallest of these faults is 3e-5 at most.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import edge_asr.model.encoder as encoder
from edge_asr.export.inference_form import to_inference_form
from edge_asr.export.streaming.proof import TorchStep
from edge_asr.feature_config import FeatureConfig
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.model.attention.relative import RelativePositions
from edge_asr.model.convolution.base import Convolution
from edge_asr.model.masks import valid_frames
from edge_asr.model.streamable import geometry_from_config
from edge_asr.model.streaming import StreamingStep
from edge_asr.proof.cases import CasePlan, ProofCase, build_cases
from edge_asr.proof.compare import LogProbModel, ProofStep, TorchModel, run_cases
from edge_asr.proof.streams import LockstepStreams, stream_cases
from edge_asr.proof.truth import Truth, compare_to_truth, run_truth
from edge_asr.stream_geometry import StreamingGeometry
from edge_asr.vocabulary import Vocabulary

FEATURES = FeatureConfig.from_preset("nemo")
PLAN = CasePlan(random_lengths=2, max_random_s=4.0, max_batch=2)
VOCABULARY = Vocabulary(kind="char", tokens=(*"▁abcdefghijklmnopqrstuvwxyz'", "<blk>"), blank_id=28)
SHAPES: dict[str, dict[str, Any]] = {
    "conformer": {"subsampling": "striding", "subsampling_factor": 4, "conv_kernel_size": 15},
    "fastconformer": {"subsampling": "dw_striding", "subsampling_factor": 8, "conv_kernel_size": 9},
    "streaming": {
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "conv_kernel_size": 9,
        "conv_context": "causal",
        "attention_context": (8, 3),
        "attention_context_style": "chunked_limited",
    },
}


def make_network(shape: str) -> ConformerCTC:
    """Random weights, seed 0, with outputs that depend on the input as a trained network's do."""
    generator = torch.Generator().manual_seed(0)
    config = ConformerConfig(
        vocab_size=len(VOCABULARY),
        d_model=64,
        n_layers=2,
        n_heads=4,
        subsampling_channels=24,
        **{"conv_context": "symmetric", **SHAPES[shape]},
    )
    model = ConformerCTC(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and name.endswith("weight"):
                parameter.copy_(noise * (2 * parameter.shape[0] / parameter.numel()) ** 0.5)
            else:
                parameter.add_(0.3 * noise)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.1 + torch.rand(module.running_var.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=["conformer", "fastconformer"])
def network(request: pytest.FixtureRequest) -> ConformerCTC:
    return make_network(request.param)


def make_cases(network: ConformerCTC) -> list[ProofCase]:
    generator = np.random.default_rng(0)
    waveforms = {"noise": (0.05 * generator.standard_normal(48_000)).astype(np.float32)}
    return build_cases(waveforms, FEATURES, network.config.output_frames, PLAN)


def prove(original: ConformerCTC, candidate: LogProbModel) -> ProofStep:
    """The proof of an export, with a network in place of the graph."""
    frames, cases = original.config.output_frames, make_cases(original)
    truth = run_truth(copy.deepcopy(original), cases, frames)
    return compare_to_truth(truth, run_cases(candidate, cases, frames), cases, VOCABULARY, name="graph")


def test_the_same_network_in_padded_batches_passes(network: ConformerCTC) -> None:
    step = prove(network, TorchModel(network))
    assert step.passed, step.failure_message()
    assert step.rounding is not None
    assert 0 < step.rounding.reference_max < 1e-3
    assert step.rounding.candidate_rms < 1.5 * step.rounding.reference_rms


def test_equal_arithmetic_written_differently_passes(network: ConformerCTC) -> None:
    """What the export does: BatchNorm inside the convolution, another order of sums."""
    step = prove(network, TorchModel(to_inference_form(copy.deepcopy(network))))
    assert step.passed, step.failure_message()


def test_a_right_graph_passes_though_its_rounding_is_above_1e_4() -> None:
    """As that of a NeMo FastConformer with random weights, which a fixed bar of 1e-4 refused."""
    network = make_network("fastconformer")
    with torch.no_grad():
        network.head.projection.weight.mul_(40.0)
    step = prove(network, TorchModel(to_inference_form(copy.deepcopy(network))))
    assert step.rounding is not None
    assert step.rounding.candidate_max > 1e-4
    assert step.passed, step.failure_message()


def scale_one_matrix(model: ConformerCTC) -> None:
    weight = model.encoder.layers[0].attention.position.weight
    weight.mul_(1 + 1e-3)


def scale_one_number(model: ConformerCTC) -> None:
    weight = model.encoder.layers[1].feed_forward_in.project.weight
    weight.view(-1)[weight.abs().argmax()] *= 1 + 1e-3


def move_the_padding(model: ConformerCTC) -> None:
    convolution = next(m for m in model.modules() if isinstance(m, Convolution))
    left, right = convolution.context
    convolution.context = (left - 1, right + 1)


def shift_positions(model: ConformerCTC) -> None:
    class OffByOne(RelativePositions):
        def forward(self, n_frames: int) -> torch.Tensor:
            return self._encode(n_frames - 1, 2 * n_frames)

    model.encoder.positions = OffByOne(model.config.d_model)


def swap_two_heads(model: ConformerCTC) -> None:
    attention = model.encoder.layers[0].attention
    order = [1, 0, 2, 3]
    attention.pos_bias_u.copy_(attention.pos_bias_u[order])


def forget_epsilon(model: ConformerCTC) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 0.0


FAULTS: dict[str, Callable[[ConformerCTC], None]] = {
    "a weight matrix 1e-3 of its size off": scale_one_matrix,
    "one number of a matrix 1e-3 of its size off": scale_one_number,
    "padding off by one": move_the_padding,
    "positions off by one": shift_positions,
    "two heads swapped": swap_two_heads,
    "BatchNorm without its epsilon": forget_epsilon,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_graph_fails(network: ConformerCTC, fault: str) -> None:
    wrong = copy.deepcopy(network)
    with torch.no_grad():
        FAULTS[fault](wrong)
    step = prove(network, TorchModel(wrong))
    assert not step.passed
    assert "PyTorch in float32" in step.failure_message()


def test_a_mask_that_misses_the_last_frame_fails(
    network: ConformerCTC, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last frame of each row is taken for padding, by the attention of a batch that has padding."""

    def shorter(lens: torch.Tensor, n_frames: int, stride: int = 1, first: int = 1) -> torch.Tensor:
        return valid_frames(torch.clamp(lens - stride, min=1), n_frames, stride, first)

    class Wrong:
        def log_probs(self, features: Any, feature_lens: Any) -> Any:
            with monkeypatch.context() as patch:
                if len(set(feature_lens.tolist())) > 1:
                    patch.setattr(encoder, "valid_frames", shorter)
                return TorchModel(network).log_probs(features, feature_lens)

    step = prove(network, Wrong())
    assert {row.family for row in step.failures} == {"padded"}


class Streamed:
    """A network run chunk by chunk, in float32, as a `LogProbModel`."""

    def __init__(self, network: ConformerCTC, geometry: StreamingGeometry) -> None:
        self.streams = LockstepStreams(TorchStep(StreamingStep(network, geometry)))

    def log_probs(self, features: Any, feature_lens: Any) -> Any:
        return self.streams.log_probs(features, feature_lens)


@pytest.fixture(scope="module")
def streaming_network() -> ConformerCTC:
    return make_network("streaming")


def prove_streamed(network: ConformerCTC, wrong: ConformerCTC) -> ProofStep:
    """The proof of a streaming graph, with chunks of a network in place of the graph."""
    geometry = geometry_from_config(network.config, FEATURES)
    cases = stream_cases(make_cases(network), geometry)
    truth = run_truth(copy.deepcopy(network), cases, geometry.output_frames)
    given = run_cases(Streamed(wrong, geometry), cases, geometry.output_frames)
    return compare_to_truth(truth, given, cases, VOCABULARY, name="stream")


def test_the_same_network_chunk_by_chunk_passes(streaming_network: ConformerCTC) -> None:
    step = prove_streamed(streaming_network, streaming_network)
    assert step.passed, step.failure_message()


def shift_streamed_positions(model: ConformerCTC) -> None:
    class OffByOne(RelativePositions):
        def stream(self, n_frames: int, n_memory: int, n_before: torch.Tensor) -> torch.Tensor:
            return self._encode(n_memory + n_frames - 1, n_memory + 2 * n_frames)

    model.encoder.positions = OffByOne(model.config.d_model)


def forget_the_last_memory(model: ConformerCTC) -> None:
    attention: Any = model.encoder.layers[0].attention
    attend = attention._attend

    def blind(query: Any, keys: torch.Tensor, values: Any, bias: torch.Tensor, positions: Any) -> Any:
        hidden = bias.clone()
        hidden[..., keys.shape[2] - query.shape[2] - 1] = -1e4
        return attend(query, keys, values, hidden, positions)

    attention._attend = blind


STREAM_FAULTS: dict[str, Callable[[ConformerCTC], None]] = {
    "a weight matrix 1e-3 of its size off": scale_one_matrix,
    "one number of a matrix 1e-3 of its size off": scale_one_number,
    "positions off by one": shift_streamed_positions,
    "two heads swapped": swap_two_heads,
    "the mask hides the last frame of the memory": forget_the_last_memory,
    "BatchNorm without its epsilon": forget_epsilon,
}


@pytest.mark.parametrize("fault", STREAM_FAULTS)
def test_a_wrong_stream_fails(streaming_network: ConformerCTC, fault: str) -> None:
    wrong = copy.deepcopy(streaming_network)
    with torch.no_grad():
        STREAM_FAULTS[fault](wrong)
    assert not prove_streamed(streaming_network, wrong).passed


def test_texts_may_differ_where_two_tokens_tie_within_the_rounding() -> None:
    """Two tokens whose log-probs are equal but for 1e-6: rounding alone decides; at 1e-2 it does not."""

    def log_probs(lead: float) -> npt.NDArray[np.float64]:
        logits = np.array([[3.0 + lead, 3.0, -5.0], [0.0, 1.0, 8.0]])
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    vocabulary = Vocabulary(kind="char", tokens=("a", "b", "<blk>"), blank_id=2)
    case = ProofCase(family="real", name="tie", features=(np.zeros((2, 3), np.float32),))
    for lead, passes in ((1e-6, True), (1e-2, False)):
        exact = (log_probs(lead),)
        truth = Truth(name="PyTorch", exact=[exact], rounded={0: (exact[0].astype(np.float32) + 1e-5,)})
        step = compare_to_truth(truth, [(log_probs(-lead),)], [case], vocabulary, name="graph")
        assert step.passed is passes
