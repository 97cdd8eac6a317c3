"""Groups are told by the names of nodes: the embedded model's all found, strangers refused."""

from __future__ import annotations

from typing import get_args

import onnx
import pytest
from onnx import helper

from edge_asr.calibration.int8_groups import GROUPS, QUANTIZABLE, Group, group_nodes, nodes_of
from edge_asr.errors import BundleError


def named(*names: str, op_type: str = "MatMul") -> onnx.ModelProto:
    nodes = [helper.make_node(op_type, ["a", "b"], [f"t{i}"], name) for i, name in enumerate(names)]
    return helper.make_model(helper.make_graph(nodes, "names", [], []))


def test_embedded_model_has_every_group_and_one_float_convolution(tiny_en: onnx.ModelProto) -> None:
    """Eight layers of four heads: per layer 4 feed-forward products, q k v and out, two by distance and
    their table, scores and context, two pointwise and one depthwise."""
    found = group_nodes(tiny_en)
    assert {group: len(names) for group, names in found.items()} == {
        "subsampling": 4,
        "subsampling_projection": 1,
        "feed_forward": 8 * 4,
        "attention_projections": 8 * 2,
        "attention_positions": 8 * 3,
        "attention_products": 8 * 2,
        "pointwise": 8 * 2,
        "depthwise": 8,
        "head": 1,
    }
    assert list(found) == list(GROUPS) == list(get_args(Group))
    all_names = [name for names in found.values() for name in names]
    assert len(set(all_names)) == len(all_names)
    candidates = {n.name for n in tiny_en.graph.node if n.op_type in QUANTIZABLE}
    assert candidates - set(all_names) == {"encoder.subsampling.first/Conv"}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("encoder.subsampling.stages.1.0/Conv", "subsampling"),
        ("encoder.subsampling.out/MatMul", "subsampling_projection"),
        ("encoder.layers.11.feed_forward_out.project/Gemm", "feed_forward"),
        ("encoder.layers.3.attention.qkv/MatMul", "attention_projections"),
        ("encoder.layers.3.attention.out/MatMul", "attention_projections"),
        ("encoder.layers.3.attention.position/MatMul", "attention_positions"),
        ("encoder.layers.3.attention.by_distance/scores", "attention_positions"),
        ("encoder.layers.3.attention.position/MatMul_1", "attention_positions"),
        ("encoder.layers.3.attention.by_shift/MatMul", "attention_products"),
        ("encoder.layers.3.attention/MatMul_1", "attention_products"),
        ("encoder.layers.3.convolution.pointwise_out/MatMul", "pointwise"),
        ("encoder.layers.3.convolution.depthwise/Conv", "depthwise"),
        ("head.projection/MatMul", "head"),
    ],
)
def test_names_of_every_group(name: str, group: Group) -> None:
    for op_type in QUANTIZABLE:
        assert group_nodes(named(name, op_type=op_type)) == {group: (name,)}


def test_groups_that_a_graph_lacks_are_not_listed_and_the_order_is_that_of_groups() -> None:
    model = named("head.projection/MatMul", "encoder.subsampling.out/MatMul", "elsewhere/MatMul")
    assert list(group_nodes(model)) == ["subsampling_projection", "head"]


def test_nodes_of_keeps_the_order_of_the_graph(tiny_en: onnx.ModelProto) -> None:
    groups: tuple[Group, ...] = ("head", "pointwise", "feed_forward")
    nodes = nodes_of(tiny_en, groups)
    order = {node.name: index for index, node in enumerate(tiny_en.graph.node)}
    assert len(nodes) == 1 + 16 + 32
    assert nodes == sorted(nodes, key=order.__getitem__)
    assert nodes[-1].startswith("head.")
    assert nodes_of(tiny_en, ()) == []


@pytest.mark.parametrize(
    "model",
    [
        named("MatMul_1", "/encoder/layers.0/MatMul", ""),
        named("encoder.subsampling.first/Conv", op_type="Conv"),
        named("head.projection/MatMul", op_type="Add"),
    ],
    ids=["another exporter", "only the float convolution", "no product"],
)
def test_graph_without_names_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match="no node of the graph is named after a module"):
        group_nodes(model)
