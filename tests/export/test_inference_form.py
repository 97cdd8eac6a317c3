"""The inference form is the same function: random models of every kind against themselves, padded and short.

Every parameter of these models is away from its default (tests/model/small_models.py), so a factor or a bias
that is folded into the wrong place shows.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import edge_asr.calibration
import edge_asr.export
from edge_asr.calibration import int8_groups
from edge_asr.calibration.int8_groups import GROUPS, group_nodes
from edge_asr.export import inference_form
from edge_asr.export.inference_form import (
    DistanceTable,
    HalfPositions,
    MaskedSubsampling,
    PlaneConvolution,
    ShiftAttention,
    ShiftedProduct,
    to_inference_form,
)
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import simplify_graph
from edge_asr.graph import part_names
from edge_asr.model.attention.relative import RelPosAttention
from edge_asr.model.convolution.base import Convolution
from edge_asr.model.subsampling.striding import ConvSubsampling

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from small_models import N_MELS, build_model

#: float32 rounding of two blocks; an error in a formula is a hundred times this in every variant here.
TOLERANCE = 2e-5

VARIANTS: list[dict[str, Any]] = [
    {},
    {"subsampling": "striding", "subsampling_factor": 4},
    {"subsampling": "striding", "subsampling_factor": 8},
    {"subsampling": "dw_striding", "subsampling_factor": 4},
    {"subsampling": "striding", "subsampling_factor": 2},
    {"block_order": "convolution_first"},
    {"block_order": "parallel"},
    {"conv_norm": "layer_norm"},
    {"conv_context": "causal"},
    {"conv_context": (1, 3)},
    {"n_heads": 4},
    {"n_heads": 8},
    {"n_heads": 1},
    {"xscaling": True},
    {"activation": "gelu", "ff_expansion": 2},
    {"attention_context": (3, 1)},
    {"head": "lstm"},
    {"cmvn": False, "intermediate_ctc_layers": (1,)},
    # Kinds whose front end, attention or convolution the form does not know.
    {"attention": "linear"},
    {"attention": "rotary"},
    {"conv_norm": "group_norm"},
    {"subsampling": "dw_striding", "subsampling_causal": True},
]


def name(overrides: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in overrides.items()) or "default"


def compare(model: nn.Module, form: nn.Module, features: Tensor, lengths: Tensor, **how: Any) -> float:
    """Largest difference over valid frames; the lengths must be equal."""
    with torch.inference_mode():
        expected, expected_lens = model(features, lengths, **how)
        found, found_lens = form(features, lengths, **how)
    assert torch.equal(expected_lens, found_lens)
    assert expected.shape == found.shape
    valid = torch.arange(expected.shape[1])[None] < expected_lens[:, None]
    assert torch.isfinite(found).all()
    return float((expected - found).abs()[valid].max())


@pytest.mark.parametrize("overrides", VARIANTS, ids=name)
def test_log_probs_are_those_of_the_model(overrides: dict[str, Any]) -> None:
    model = build_model(**overrides)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form = to_inference_form(model)
    generator = torch.Generator().manual_seed(1)
    for lengths in ([1], [2], [9], [17, 1, 8], [130, 131, 64, 40], [250]):
        features = torch.randn(len(lengths), max(lengths), N_MELS, generator=generator) * 2
        assert compare(model, form, features, torch.tensor(lengths)) < TOLERANCE, lengths
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not form.training


def test_what_lies_in_the_padding_changes_nothing() -> None:
    form = to_inference_form(build_model(subsampling="striding", subsampling_factor=4))
    generator = torch.Generator().manual_seed(2)
    features, lengths = torch.randn(2, 60, N_MELS, generator=generator), torch.tensor([60, 37])
    other = features.clone()
    other[1, 37:] = torch.randn(23, N_MELS, generator=generator) * 100
    alone = features[1:, :37]
    with torch.inference_mode():
        first, _ = form(features, lengths)
        second, _ = form(other, lengths)
        by_itself, _ = form(alone, lengths[1:])
    assert torch.equal(first[1, :10], second[1, :10])
    assert (first[1, :10] - by_itself[0, :10]).abs().max() < TOLERANCE


def test_chunked_attention_too() -> None:
    model = build_model(conv_context="causal")
    features = torch.randn(2, 100, N_MELS, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([100, 75])
    form = to_inference_form(model)
    assert compare(model, form, features, lengths, chunk_frames=3, left_chunks=1) < TOLERANCE


def test_the_parts_it_knows_are_replaced() -> None:
    form = to_inference_form(build_model(n_heads=4))
    encoder: Any = form.encoder
    assert type(encoder.subsampling) is MaskedSubsampling
    assert type(encoder.positions) is HalfPositions
    for block in encoder.layers:
        assert type(block.attention) is ShiftAttention
        assert type(block.convolution) is PlaneConvolution
        assert block.half_step == 1.0
    assert not any(isinstance(m, nn.BatchNorm1d) for m in form.modules())


def test_types_it_does_not_know_are_left() -> None:
    """Subclasses too: what they do differently is not known."""

    class OtherAttention(RelPosAttention):
        pass

    class OtherConvolution(Convolution):
        pass

    class OtherSubsampling(ConvSubsampling):
        pass

    model = build_model()
    for block in model.encoder.layers:
        block.attention.__class__ = OtherAttention
        block.convolution.__class__ = OtherConvolution
    model.encoder.subsampling.__class__ = OtherSubsampling
    encoder: Any = to_inference_form(model).encoder
    assert type(encoder.subsampling) is OtherSubsampling
    assert all(type(block.attention) is OtherAttention for block in encoder.layers)
    assert all(type(block.convolution) is OtherConvolution for block in encoder.layers)


def test_modules_of_others_come_back_as_a_copy() -> None:
    plain = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.GELU()).eval()
    form = to_inference_form(plain)
    x = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(4))
    assert form is not plain
    assert torch.equal(form(x), plain(x))


def test_one_block_of_another_kind_keeps_the_attention_of_all() -> None:
    """The positions are shared, so it is all blocks or none."""

    class OtherAttention(RelPosAttention):
        pass

    model = build_model()
    model.encoder.layers[1].attention.__class__ = OtherAttention
    encoder: Any = to_inference_form(model).encoder
    assert type(encoder.layers[0].attention) is RelPosAttention


def test_scores_by_distance_are_sums_over_sines_and_cosines() -> None:
    """By loops in float64: q_i . W r(i - j), r interleaving sines and cosines of i - j."""
    n_frames, d_head, d_model = 7, 3, 8
    generator = torch.Generator().manual_seed(5)
    position = torch.randn(d_head, d_model, generator=generator)
    query = torch.randn(1, 1, n_frames, d_head, generator=generator)
    table = DistanceTable(position)(*HalfPositions(d_model)(n_frames), n_frames)
    found = ShiftedProduct()(query, table)
    for i in range(n_frames):
        for j in range(n_frames):
            angles = (i - j) / 10000.0 ** (2 * torch.arange(d_model // 2, dtype=torch.float64) / d_model)
            row = torch.stack((angles.sin(), angles.cos()), dim=1).flatten()
            expected = query[0, 0, i].double() @ position.double() @ row
            assert found[0, 0, i, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_long_clips_keep_their_accuracy() -> None:
    """30 s: angles of up to 375 rad in float32 cost 2e-5 each; the text of a clip needs far less."""
    model = build_model(n_layers=1)
    features = torch.randn(1, 3000, N_MELS, generator=torch.Generator().manual_seed(6))
    assert compare(model, to_inference_form(model), features, torch.tensor([3000])) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ({"n_heads": 4}, {"subsampling": 4}),
        (
            {"n_heads": 8, "subsampling": "striding", "subsampling_factor": 4, "block_order": "parallel"},
            {"subsampling": 1},
        ),
    ],
    ids=["dw_striding", "striding"],
)
def test_exported_nodes_are_told_by_name(overrides: dict[str, Any], counts: dict[str, int]) -> None:
    """One layer: every product and convolution of the graph but the first has its group."""
    model = build_model(n_layers=1, **overrides)
    graph = simplify_graph(export_onnx(to_inference_form(model), N_MELS), N_MELS)
    found = {group: len(nodes) for group, nodes in group_nodes(graph).items()}
    assert found == {
        "subsampling_projection": 1,
        "feed_forward": 4,
        "pointwise": 2,
        "depthwise": 1,
        "head": 1,
        "attention_projections": 2,
        "attention_positions": 2,
        "attention_products": 3,
        **counts,
    }
    products = [node.name for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert set(products) - {n for nodes in group_nodes(graph).values() for n in nodes} == {
        "encoder.subsampling.first/Conv"
    }
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    features, lengths = torch.randn(2, 90, N_MELS), torch.tensor([90, 51])
    feeds = {"audio_signal": features.transpose(1, 2).numpy(), "length": lengths.numpy()}
    (log_probs,) = session.run(None, feeds)
    with torch.inference_mode():
        expected, expected_lens = model(features, lengths)
    for row, n_frames in enumerate(expected_lens.tolist()):
        # Another order of sums than torch's.
        assert abs(log_probs[row, :n_frames] - expected[row, :n_frames].numpy()).max() < 1e-4


def groups_of_modules(form: nn.Module, groups: ModuleType) -> dict[str, list[str]]:
    """The modules of each INT8 group, if each of them were one product."""
    attention = [name for name, module in form.named_modules() if name.endswith(part_names.ATTENTION)]
    names = [name for name, module in form.named_modules() if not any(module.children())] + attention
    nodes = [helper.make_node("MatMul", ["a", "b"], [name], f"{name}/MatMul") for name in names if name]
    found = groups.group_nodes(helper.make_model(helper.make_graph(nodes, "modules", [], [])))
    return {group: [name.removesuffix("/MatMul") for name in names] for group, names in found.items()}


def test_every_group_finds_modules_of_the_form() -> None:
    """A part that is renamed in edge_asr.model and not in part_names would leave its group empty."""
    found = groups_of_modules(to_inference_form(build_model()), int8_groups)
    assert set(found) == set(GROUPS)
    parts = {name.split(".")[-1] for names in found.values() for name in names}
    wanted = {*part_names.ATTENTION_PROJECTIONS, *part_names.POINTWISE, part_names.DEPTHWISE}
    assert wanted | {part_names.DISTANCE_TABLE, part_names.SHIFTED_PRODUCT, part_names.ATTENTION} <= parts
    owners = {name.split(".")[3] for name in found["feed_forward"]}
    assert owners == set(part_names.FEED_FORWARDS)


@pytest.mark.parametrize("constant", ["FIRST_CONVOLUTION", "DISTANCE_TABLE", "SHIFTED_PRODUCT"])
def test_renaming_a_part_moves_its_module_and_its_group(
    constant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = groups_of_modules(to_inference_form(build_model()), int8_groups)
    old = getattr(part_names, constant)
    monkeypatch.setattr(part_names, constant, "renamed")
    fresh = []
    for package, module in ((edge_asr.calibration, int8_groups), (edge_asr.export, inference_form)):
        monkeypatch.setattr(package, module.__name__.rpartition(".")[2], module)  # put back at the end
        monkeypatch.delitem(sys.modules, module.__name__)
        fresh.append(importlib.import_module(module.__name__))
    groups, form = fresh
    names = dict(form.to_inference_form(build_model()).named_modules())
    assert any(name.endswith(".renamed") for name in names)
    after = groups_of_modules(form.to_inference_form(build_model()), groups)
    assert after == {
        group: [name.replace(f".{old}", ".renamed") for name in found] for group, found in before.items()
    }
