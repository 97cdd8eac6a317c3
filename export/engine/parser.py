"""Parses ONNX into a TensorRT network, and explains what the parser refuses.

TensorRT's own messages say which check failed, not what is wrong with the file. The known ways in which a
quantized file is wrong for TensorRT get a sentence that says how to fix it. Every other error is shown as the
parser gives it, with its node. The parser does not refuse unsigned activations with zero point 0: it reads
them as signed and so saturates half of their range. That is an error here. onnx is not needed, because a
Jetson has none.
What this file does not do: optimization profiles, building.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_asr.errors import EngineError

_log = logging.getLogger(__name__)

_REQUANTIZE = "quantize the model again with `edge-asr quantize`"
_DYNAMIC_OPERATORS = frozenset(
    {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
_QUANTIZED_OPERATOR = re.compile(r"QLinear[A-Z]\w*|QGemm|QAttention")
_ZERO_POINT = re.compile(r"zero[ _]?point|shiftIsAllZeros", re.IGNORECASE)
_UNSIGNED = re.compile(r"uint8", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why TensorRT refuses a file: in a few words, and in a sentence that says how to fix it."""

    title: str
    advice: str


ASYMMETRIC = Refusal(
    title="asymmetric activations",
    advice="its activations are quantized asymmetrically (a zero point that is not 0, or unsigned QUInt8), "
    "and TensorRT accepts only symmetric signed int8; with onnxruntime's quantize_static give "
    f"activation_type QInt8 and ActivationSymmetric=True, or {_REQUANTIZE}",
)
QUANTIZED_BIAS = Refusal(
    title="quantized bias",
    advice="its biases are quantized (an int32 DequantizeLinear), and TensorRT accepts only floating-point "
    f"biases; with onnxruntime's quantize_static give QuantizeBias=False, or {_REQUANTIZE}",
)
DYNAMIC = Refusal(
    title="dynamically quantized",
    advice="it was quantized dynamically (quantize_dynamic: scales that are computed while it runs), and "
    f"TensorRT needs scales that are in the file; {_REQUANTIZE}, which calibrates on speech",
)
OPERATOR_FORMAT = Refusal(
    title="quantized operator",
    advice="it was quantized into operators such as QLinearConv, and TensorRT reads pairs of QuantizeLinear "
    "and DequantizeLinear only; with onnxruntime's quantize_static give quant_format=QuantFormat.QDQ, or "
    f"{_REQUANTIZE}",
)
UNKNOWN = Refusal(
    title="not supported",
    advice="the parser of this TensorRT does not support the nodes named; export the model again with "
    "`edge-asr export`, or use a newer TensorRT",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserIssue:
    """One error of the parser.

    Attributes:
        node: number of the node in the file, -1 when unknown.
        name, operator: those of the node; empty where this TensorRT does not say (8.6).
        message: what TensorRT says.
        refusal: what is wrong with the file, and how to fix it; one of the constants above.
    """

    node: int
    name: str
    operator: str
    message: str
    refusal: Refusal

    def __str__(self) -> str:
        if self.node < 0:
            return self.message
        operator = f" ({self.operator})" if self.operator else ""
        where = f"node {self.node}" + (f" {self.name!r}" if self.name else "") + operator
        return f"{where}: {self.message}"


def parse_network(trt: Any, network: Any, model: bytes, file: str) -> None:
    """Fill an empty network with an ONNX model.

    Args:
        trt: TensorRT's module.
        network: empty network definition.
        model: the ONNX file's bytes.
        file: its name, for messages.

    Raises:
        EngineError: the parser refuses the model; the message says why, in how many places and how to fix
            it, and each error goes to the log at level ERROR.
    """
    log = _create_parser_log(trt)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(model)
    issues = [_read_issue(parser.get_error(index)) for index in range(parser.num_errors)]
    unsigned = [
        message for message in log.warnings if _ZERO_POINT.search(message) and _UNSIGNED.search(message)
    ]
    if unsigned and not issues:
        issues = [ParserIssue(node=-1, name="", operator="", message=unsigned[0], refusal=ASYMMETRIC)]
    if issues or not parsed:
        for issue in issues:
            _log.error("%s, %s: %s", file, issue.refusal.title, issue)
        raise EngineError(_refusal(trt, file, issues))


def _refusal(trt: Any, file: str, issues: list[ParserIssue]) -> str:
    who = f"{trt.__name__} {trt.__version__} refuses {file}"
    if not issues:
        return f"{who} and does not say why; export the model again with `edge-asr export`"
    kinds = list(dict.fromkeys(issue.refusal for issue in issues))
    kinds.sort(key=lambda refusal: refusal == UNKNOWN)  # known errors often cause the others
    parts = []
    for refusal in kinds:
        found = [issue for issue in issues if issue.refusal == refusal]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        parts.append(f"{refusal.advice}. At {found[0]}{more}")
    return f"{who}: " + "; ".join(parts)


def _read_issue(error: Any) -> ParserIssue:
    operator = _call(error, "node_operator")
    text = error.desc()
    # On a machine without a driver TensorRT adds lines about a CUDA error, which are noise here.
    lines = [line for line in text.splitlines() if line.strip() and "catchCudaError" not in line]
    code = str(error.code()).rsplit(".", 1)[-1]
    message = f"{code}: {' '.join(lines)}" if lines != ["false"] else f"{code}: not supported"
    return ParserIssue(
        node=error.node(),
        name=_call(error, "node_name"),
        operator=operator,
        message=message,
        refusal=_classify(operator, text),
    )


def _call(error: Any, name: str) -> str:
    """Return a text of a parser error; empty where TensorRT 8.6 lacks it."""
    method: Callable[[], str] | None = getattr(error, name, None)
    return "" if method is None else method()


def _classify(operator: str, text: str) -> Refusal:
    if operator in _DYNAMIC_OPERATORS or any(name in text for name in _DYNAMIC_OPERATORS):
        return DYNAMIC
    if _QUANTIZED_OPERATOR.fullmatch(operator) or _QUANTIZED_OPERATOR.search(text):
        return OPERATOR_FORMAT
    if operator in ("DequantizeLinear", "") and "int32" in text.lower():
        return QUANTIZED_BIAS
    if _ZERO_POINT.search(text):
        return ASYMMETRIC
    return UNKNOWN


def _create_parser_log(trt: Any) -> Any:
    """Create a logger for the parser alone, which sends all to `logging` as DEBUG and keeps warnings.

    Errors come from the parser itself. Its warnings complain about the int64 lengths of every model.
    """

    class ParserLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity.name == "WARNING":
                self.warnings.append(msg)
            _log.debug("%s: %s", trt.__name__, msg)

    return ParserLog()
