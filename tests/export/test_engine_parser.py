"""What TensorRT refuses, with its real parser. RTX builder on CPU: execution not tested."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from edge_asr.errors import EngineError
from edge_asr.export.engine import parser as engine_parser
from edge_asr.export.engine.parser import ParserIssue, Refusal, parse_network
from edge_asr.export.engine.plan import make_plan
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.sidecar import EngineProfile

sys.path.insert(0, str(Path(__file__).parent))
from engine_models import make_graph, quantize

PROFILE = EngineProfile(min_frames=10, opt_frames=20, max_frames=40, min_batch=1, opt_batch=1, max_batch=2)


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    """TensorRT-RTX, whose parser and builder run without a GPU."""
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (extra: test, Linux x86-64)")


@pytest.fixture(scope="session")
def logger(rtx: ModuleType) -> Any:
    return create_logger(rtx)


def build(rtx: ModuleType, logger: Any, model: onnx.ModelProto, profile: EngineProfile = PROFILE) -> Any:
    return make_plan(
        rtx,
        logger,
        model.SerializeToString(),
        "model.int8.onnx",
        precision="int8",
        profiles=[profile],
        n_mels=80,
    )


def refusal_of(rtx: ModuleType, logger: Any, model: onnx.ModelProto) -> str:
    with pytest.raises(EngineError) as caught:
        build(rtx, logger, model)
    return str(caught.value)


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_takes_symmetric_int8(
    rtx: ModuleType, logger: Any, tmp_path: Path
) -> None:
    model = quantize(make_graph(), tmp_path, "good")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert len(build(rtx, logger, model).data) > 10_000


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("kind", "refusal", "words"),
    [
        (
            "quantized_bias",
            engine_parser.QUANTIZED_BIAS,
            ["QuantizeBias=False", "'stem.bias_DequantizeLinear'"],
        ),
        ("asymmetric", engine_parser.ASYMMETRIC, ["ActivationSymmetric=True", "(QuantizeLinear)"]),
        ("unsigned", engine_parser.ASYMMETRIC, ["activation_type QInt8", "(QuantizeLinear)"]),
        ("unsigned_zero", engine_parser.ASYMMETRIC, ["activation_type QInt8"]),
        ("dynamic", engine_parser.DYNAMIC, ["`edge-asr quantize`", "(DynamicQuantizeLinear)", "and 3 more"]),
        ("operators", engine_parser.OPERATOR_FORMAT, ["QuantFormat.QDQ", "'stem/Conv_quant' (QLinearConv)"]),
    ],
)
def test_rtx_builder_on_cpu_execution_not_tested_known_refusals(
    kind: str,
    refusal: Refusal,
    words: list[str],
    rtx: ModuleType,
    logger: Any,
    tmp_path: Path,
) -> None:
    message = refusal_of(rtx, logger, quantize(make_graph(), tmp_path, kind))
    assert message.startswith(
        f"tensorrt_rtx {rtx.__version__} refuses model.int8.onnx: {refusal.advice}. At "
    )
    for word in words:
        assert word in message


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_reads_unsigned_as_signed(
    rtx: ModuleType, logger: Any, tmp_path: Path
) -> None:
    """Why unsigned activations with zero point 0 need our own check: the parser has no error for them."""
    model = quantize(make_graph(), tmp_path, "unsigned_zero")
    zero_points = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.UINT8]
    assert [onnx.numpy_helper.to_array(z).tolist() for z in zero_points] == [0]
    network = rtx.Builder(logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, logger).parse(model.SerializeToString())


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_every_error_is_logged(
    rtx: ModuleType, logger: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "edge_asr"):
        refusal_of(rtx, logger, quantize(make_graph(), tmp_path, "dynamic"))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert all(line.startswith("model.int8.onnx, dynamically quantized: node ") for line in lines)
    for node in ("'stem/Conv_quant' (ConvInteger)", "'head/MatMul_quant' (MatMulInteger)"):
        assert sum(node in line for line in lines) == 1


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_unknown_operator(rtx: ModuleType, logger: Any) -> None:
    model = make_graph()
    model.graph.node[1].op_type = "NoSuchOperator"
    message = refusal_of(rtx, logger, model)
    assert engine_parser.UNKNOWN.advice in message
    assert "'relu' (NoSuchOperator)" in message


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_damaged_file(rtx: ModuleType, logger: Any) -> None:
    network = rtx.Builder(logger).create_network(0)
    with pytest.raises(EngineError, match=r"refuses broken\.onnx"):
        parse_network(rtx, network, b"not an ONNX file", "broken.onnx")


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_input_without_profile(rtx: ModuleType, logger: Any) -> None:
    message = refusal_of(rtx, logger, make_graph(extra_input=True))
    assert "the input gain [-1, -1, 5] has no optimization profile" in message
    assert "audio_signal, length" in message


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_shape_outside_the_graph(
    rtx: ModuleType, logger: Any
) -> None:
    message = refusal_of(rtx, logger, make_graph(batch=1))
    assert "audio_signal is [1, 80, -1] (-1 may vary)" in message
    assert "largest shape is [2, 80, 40]" in message
    assert "--batch" in message


def test_fake_tensorrt_parser_error_of_8_6_has_no_node_name() -> None:
    """8.6 gives code, text and node number only."""

    class Error:
        def code(self) -> Any:
            return "ErrorCode.UNSUPPORTED_NODE"

        def desc(self) -> str:
            return "No importer registered for op: DynamicQuantizeLinear. Attempting to import as plugin."

        def node(self) -> int:
            return 3

    class FakeParser:
        num_errors = 1

        def __init__(self, network: Any, logger: Any) -> None: ...

        def parse(self, model: bytes) -> bool:
            return False

        def get_error(self, index: int) -> Error:
            return Error()

    trt = SimpleNamespace(OnnxParser=FakeParser, ILogger=object, __name__="tensorrt", __version__="8.6.2")
    with pytest.raises(
        EngineError, match=r"tensorrt 8\.6\.2 refuses m\.onnx: it was quantized dynamically"
    ) as caught:
        parse_network(trt, None, b"", "m.onnx")
    assert "At node 3: UNSUPPORTED_NODE: No importer" in str(caught.value)


def test_an_issue_without_a_node_is_its_message() -> None:
    issue = ParserIssue(node=-1, name="", operator="", message="why", refusal=engine_parser.UNKNOWN)
    assert str(issue) == "why"
