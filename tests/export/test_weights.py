"""float16 storage: about half the size, the same graph, exact where the weights were float16 already."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.errors import GateError
from edge_asr.graph.check import check_graph
from edge_asr.graph.weights import store_weights_as_float16


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def test_large_weights_become_float16_behind_a_cast(simplified: onnx.ModelProto) -> None:
    stored = store_weights_as_float16(simplified)
    check_graph(stored)
    before, after = initializers(simplified), initializers(stored)
    halved = [name for name in before if f"{name}_float16" in after]
    assert any("feed_forward_in.expand" in name or "val_" in name for name in halved)
    for name in halved:
        assert after[f"{name}_float16"].dtype == np.float16
        assert name not in after
        np.testing.assert_array_equal(after[f"{name}_float16"], before[name].astype(np.float16))
    assert sum(before[name].size for name in halved) > 0.8 * sum(a.size for a in before.values())


def test_norms_biases_and_depthwise_kernels_stay_float32(simplified: onnx.ModelProto) -> None:
    after = initializers(store_weights_as_float16(simplified))
    kept = [name for name in after if "depthwise" in name or "norm" in name or name.endswith("bias")]
    assert any("depthwise.weight" in name for name in kept)
    assert all(after[name].dtype == np.float32 for name in kept)


def test_original_is_untouched_and_interface_kept(simplified: onnx.ModelProto) -> None:
    before = simplified.SerializeToString(deterministic=True)
    stored = store_weights_as_float16(simplified)
    assert simplified.SerializeToString(deterministic=True) == before
    assert list(stored.graph.input) == list(simplified.graph.input)
    assert list(stored.graph.output) == list(simplified.graph.output)


def product_with(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def test_weights_that_float16_holds_are_exact() -> None:
    import onnxruntime

    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float16).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for m in (product_with(weight), store_weights_as_float16(product_with(weight)))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize("value", [7e4, np.inf, np.nan])
def test_weight_beyond_float16_fails_the_gate(value: float) -> None:
    weight = np.ones((40, 40), np.float32)
    weight[3, 4] = value
    with pytest.raises(GateError, match=r"weight w reaches .* --weights fp32"):
        store_weights_as_float16(product_with(weight))


def test_small_matrices_stay() -> None:
    model = product_with(np.ones((4, 4), np.float32))
    assert store_weights_as_float16(model) == model
