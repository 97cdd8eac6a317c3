"""The bare graph computes what the whole one does, holds no large weight, and becomes whole again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.graph import mapped
from edge_asr.graph.mapped import MappedGraph
from edge_asr.graph.session import CpuSession
from edge_asr.graph.weightless import WeightlessGraph

F32Array = npt.NDArray[np.float32]


def run(model: onnx.ModelProto, feeds: dict[str, npt.NDArray[np.generic]]) -> F32Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, feeds)
    return np.asarray(result, np.float32)


@pytest.fixture
def whole() -> onnx.ModelProto:
    """x [T, 128] through a large matrix, a transposed one, a matrix both ways, and a bias."""
    generator = np.random.default_rng(0)
    weights = {
        "straight": generator.standard_normal((128, 256)),
        "turned": generator.standard_normal((128, 256)),
        "bias": generator.standard_normal(128),
        "unread": generator.standard_normal((200, 200)),
    }
    nodes = [
        helper.make_node("Transpose", ["turned"], ["turned_t"]),
        helper.make_node("Transpose", ["straight"], ["straight_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "straight"], ["a"]),
        helper.make_node("MatMul", ["a", "turned_t"], ["b"]),
        helper.make_node("MatMul", ["a", "straight_t"], ["c"]),
        helper.make_node("Sum", ["b", "c", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", 128])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.add(key="vocab_size", value="27")
    return model


def test_bare_graph_computes_the_same_from_fed_weights(whole: onnx.ModelProto) -> None:
    before = whole.SerializeToString(deterministic=True)
    graph = WeightlessGraph(whole)
    bare, weights = graph.model, graph.arrays()
    assert whole.SerializeToString(deterministic=True) == before
    assert [i.name for i in bare.graph.initializer] == ["bias"]
    assert sorted(weights) == ["straight", "straight_t", "turned_t"]
    assert [node.op_type for node in bare.graph.node] == ["MatMul", "MatMul", "MatMul", "Sum"]
    assert bare.ByteSize() < 2000
    onnx.checker.check_model(bare, full_check=True)
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    np.testing.assert_array_equal(run(bare, {"x": x, **weights}), run(whole, {"x": x}))


def test_joined_graph_is_whole_again(whole: onnx.ModelProto) -> None:
    graph = WeightlessGraph(whole)
    bare = graph.model
    graph.fill(bare)
    assert [value.name for value in bare.graph.input] == ["x"]
    assert sorted(i.name for i in bare.graph.initializer) == ["bias", "straight", "straight_t", "turned_t"]
    assert [(p.key, p.value) for p in bare.metadata_props] == [("vocab_size", "27")]
    assert (bare.ir_version, bare.opset_import[0].version) == (10, 18)
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    np.testing.assert_array_equal(run(bare, {"x": x}), run(whole, {"x": x}))


def test_weights_that_simplification_dropped_stay_away(whole: onnx.ModelProto) -> None:
    graph = WeightlessGraph(whole)
    bare = graph.model
    del bare.graph.node[2]  # as if the product by straight_t had been removed
    bare.graph.node[2].input.remove("c")
    graph.fill(bare)
    assert sorted(i.name for i in bare.graph.initializer) == ["bias", "straight", "turned_t"]
    onnx.checker.check_model(bare, full_check=True)


def test_weights_that_a_tool_needs_are_filled_in_first(whole: onnx.ModelProto) -> None:
    graph = WeightlessGraph(whole)
    graph.fill(graph.model, {"straight", "no such weight"})
    assert sorted(i.name for i in graph.model.graph.initializer) == ["bias", "straight"]
    assert "straight" not in [value.name for value in graph.model.graph.input]
    graph.fill(graph.model)
    assert [value.name for value in graph.model.graph.input] == ["x"]
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    np.testing.assert_array_equal(run(graph.model, {"x": x}), run(whole, {"x": x}))


def test_a_session_of_a_mapped_graph_outlives_it(whole: onnx.ModelProto) -> None:
    before = whole.SerializeToString(deterministic=True)
    with MappedGraph(whole, outputs=["a", "y"]) as graph:
        path = graph.path
        written = onnx.load(path, load_external_data=False)
        assert path.stat().st_size < 2000
        assert graph.size_bytes == whole.ByteSize()
        session = CpuSession(graph)
    assert not path.parent.exists()
    graph.close()  # a second time
    assert whole.SerializeToString(deterministic=True) == before
    outside = [i.name for i in written.graph.initializer if i.data_location == TensorProto.EXTERNAL]
    assert outside == ["straight", "turned", "unread"]
    assert [value.name for value in written.graph.output] == ["y", "a"]
    assert session.types() == dict.fromkeys(("x", "y", "a"), "tensor(float)")
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    y, a = session.run(["y", "a"], {"x": x})
    np.testing.assert_array_equal(y, run(whole, {"x": x}))
    straight = numpy_helper.to_array(whole.graph.initializer[0])
    np.testing.assert_allclose(a, x @ straight, rtol=0, atol=1e-4)


def test_memory_goes_back_before_a_session_and_after_a_large_graph(
    whole: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a small one: looking for garbage takes longer than its work."""
    collected = []
    monkeypatch.setattr(mapped.gc, "collect", lambda: collected.append(1))
    for least, expected in ((10**9, 0), (1000, 2)):
        monkeypatch.setattr(mapped, "_WORTHWHILE_ELEMENTS", least)
        collected.clear()
        with MappedGraph(whole) as graph, CpuSession(graph):
            pass
        assert len(collected) == expected
