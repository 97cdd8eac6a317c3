"""Simplification keeps the numbers; the checks reject graphs that other runtimes could not use."""

from __future__ import annotations

import onnx
import pytest

import edge_asr.export.optimize as optimize
from edge_asr.errors import GateError
from edge_asr.export.optimize import count_operators, set_metadata, simplify_graph
from edge_asr.graph.check import check_graph


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def test_simplified_graph_is_smaller_valid_and_still_dynamic(
    exported: onnx.ModelProto, simplified: onnx.ModelProto
) -> None:
    assert len(simplified.graph.node) <= len(exported.graph.node)
    assert simplified.ir_version <= 10
    inferred = check_graph(simplified)
    assert len(inferred.graph.value_info) > 0


def test_linear_layers_stay_matrix_products(exported: onnx.ModelProto, simplified: onnx.ModelProto) -> None:
    before, after = count_operators(exported), count_operators(simplified)
    assert (after["MatMul"], after["Gemm"]) == (before["MatMul"], before["Gemm"])


def test_simplification_that_changes_numbers_fails_the_gate(
    exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxsim

    def spoil(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        spoiled = copy_of(model)
        weight = next(i for i in spoiled.graph.initializer if i.name.endswith("projection.bias"))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] += 1.0
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return spoiled, True

    monkeypatch.setattr(onnxsim, "simplify", spoil)
    with pytest.raises(GateError, match="simplified graph differs"):
        simplify_graph(exported, 80)


def test_simplifier_is_quiet_on_stdout(exported: onnx.ModelProto, capsys: pytest.CaptureFixture[str]) -> None:
    simplify_graph(exported, 80)
    assert capsys.readouterr().out == ""


def test_fixed_time_axis_is_rejected(simplified: onnx.ModelProto) -> None:
    frozen = copy_of(simplified)
    frozen.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 100
    with pytest.raises(GateError):
        check_graph(frozen)


def test_another_input_name_is_rejected(simplified: onnx.ModelProto) -> None:
    renamed = copy_of(simplified)
    renamed.graph.input[1].name = "lengths"
    for node in renamed.graph.node:
        for index, name in enumerate(node.input):
            if name == "length":
                node.input[index] = "lengths"
    with pytest.raises(GateError, match="lengths of rank 1 where length of rank 1 belongs"):
        check_graph(renamed)


def test_newer_ir_version_is_rejected(simplified: onnx.ModelProto) -> None:
    newer = copy_of(simplified)
    newer.ir_version = 11
    with pytest.raises(GateError, match="ir_version 11"):
        check_graph(newer)


def test_broken_graph_is_rejected_in_one_line(simplified: onnx.ModelProto) -> None:
    broken = copy_of(simplified)
    broken.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(GateError, match="not valid ONNX") as caught:
        check_graph(broken)
    assert "\n" not in str(caught.value)


def test_metadata_is_replaced(simplified: onnx.ModelProto) -> None:
    described = copy_of(simplified)
    set_metadata(described, {"old": "1"})
    set_metadata(described, {"vocab_size": "27"})
    assert {p.key: p.value for p in described.metadata_props} == {"vocab_size": "27"}


def test_operator_counts_are_complete(simplified: onnx.ModelProto) -> None:
    counts = count_operators(simplified)
    assert sum(counts.values()) == len(simplified.graph.node)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_check_shapes_cover_one_frame_and_a_padded_batch() -> None:
    assert (1, 1) in optimize.CHECK_SHAPES
    assert any(batch > 1 for batch, _ in optimize.CHECK_SHAPES)
