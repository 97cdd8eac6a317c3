"""Exports a PyTorch acoustic model as one ONNX graph with dynamic batch and time.

It wraps the model so that it takes what other runtimes feed (features before time) and returns only
log-probabilities, then runs torch's dynamo exporter.
What this file does not do: fold BatchNorm (fold.py), simplify the graph (optimize.py), prove it
(edge_asr.proof).

Names and layout are those that sherpa-onnx and onnx-asr read: `audio_signal` float32 [batch, n_mels, time],
`length` int64 [batch] -> `logprobs` float32 [batch, ceil(time / s), vocabulary]. The graph of a model with an
attention decoder also gives what that attends to: `encoded` float32 [batch, ceil(time / s), width].
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edge_asr.bundle.names import ENCODED_NAME, INPUT_NAMES, OUTPUT_NAME
from edge_asr.errors import ConfigError, require
from edge_asr.graph.check import MAX_IR_VERSION

if TYPE_CHECKING:
    import onnx
    import torch

DEFAULT_OPSET = 18
MAX_OPSET = 22  # ir_version 10 is the newest that onnxruntime 1.23 reads; opset 23 requires 11
_EXAMPLE_FRAMES = (203, 131, 57)
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_MODULE_PREFIX = "acoustic_model"  # the name inside the wrapper of _channels_first


def export_onnx(
    model: torch.nn.Module, n_mels: int, *, opset: int = DEFAULT_OPSET, encoded: bool = False
) -> onnx.ModelProto:
    """Export a model whose `forward(features, feature_lens)` returns (log_probs, log_probs_lens).

    Args:
        model: in eval mode, on the CPU; features float32 [B, T, F], feature_lens int64 [B].
        n_mels: F.
        opset: ONNX opset, 18 to 22.
        encoded: whether the graph also gives what the encoder gives; the model is a `ConformerCTC`.

    Returns:
        The graph with all weights inside, as the exporter wrote it except for debug metadata and node names.
        Names are `<module>/<operator>`, such as `encoder.layers.0.attention.qkv/MatMul`, numbered from the
        second of a kind (`/MatMul_1`). Quantization groups and parser errors use them.

    Raises:
        ConfigError: the opset is outside 18 to 22.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
    """
    require("torch", extra="export")
    import torch

    frames = _example_frames(model)
    features = torch.zeros(len(frames), n_mels, max(frames))
    lengths = torch.tensor(frames, dtype=torch.int64)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    return export_module(
        _channels_first(model, encoded),
        (features, lengths),
        input_names=INPUT_NAMES,
        output_names=(OUTPUT_NAME, ENCODED_NAME) if encoded else (OUTPUT_NAME,),
        dynamic_shapes={"audio_signal": {0: batch, 2: time}, "length": {0: batch}},
        opset=opset,
    )


def export_module(
    module: torch.nn.Module,
    example: tuple[Any, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: dict[str, Any],
    opset: int,
) -> onnx.ModelProto:
    """Export a module that takes and returns plain tensors; see `export_onnx`.

    Args:
        module: in eval mode, on the CPU; an acoustic model inside it is its `acoustic_model`.
        example: tensors to trace with, or tuples of them.
        input_names, output_names: names in the graph; the inputs are those of the module's arguments.
        dynamic_shapes: for each argument, dimension -> `torch.export.Dim`.
        opset: ONNX opset, 18 to 22.
    """
    if not DEFAULT_OPSET <= opset <= MAX_OPSET:
        raise ConfigError(
            f"opset is {opset}; give {DEFAULT_OPSET} (torch's exporter) to {MAX_OPSET} (onnxruntime 1.23)"
        )
    require("torch", extra="export")
    require("onnxscript", extra="export")
    import torch

    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=opset,
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
            optimize=False,
        )
        assert program is not None  # dynamo=True always returns one
        values = list(program.model.graph.initializers.values())
        program.optimize()
        proto: onnx.ModelProto = program.model_proto
    # The rewrite rules of onnxscript (0.7.2) live as long as the process and keep the last graph they
    # matched. That graph (onnx_ir 1.1) also keeps the folded parameters, so all would stay in memory.
    for value in (*values, *program.model.graph.initializers.values()):
        value.const_value = None
    _name_nodes(proto)
    _strip_debug_metadata(proto)
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    return proto


def _example_frames(model: torch.nn.Module) -> tuple[int, ...]:
    """Choose lengths to trace with, of several output frames each: the exporter freezes an axis of one."""
    factor = getattr(getattr(model, "config", None), "subsampling_factor", 1)
    return tuple(n_frames * max(factor // 8, 1) for n_frames in _EXAMPLE_FRAMES)


def _channels_first(model: torch.nn.Module, encoded: bool) -> torch.nn.Module:
    """Wrap a model so that it takes [B, F, T] and lengths, and returns the log-probs [B, T', V].

    With `encoded` it also returns what the encoder gives, [B, T', D].
    """
    import torch

    class ChannelsFirst(torch.nn.Module):
        def __init__(self, acoustic_model: torch.nn.Module) -> None:
            super().__init__()
            self.acoustic_model = acoustic_model

        def forward(self, audio_signal: torch.Tensor, length: torch.Tensor) -> Any:
            features = audio_signal.transpose(1, 2)
            if not encoded:
                return self.acoustic_model(features, length)[0]
            model: Any = self.acoustic_model
            frames = model.encode(features, length)[0]
            return model.head(frames), frames

    return ChannelsFirst(model).eval()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about torchvision, axis names and its own deprecations.

    Some versions (torch 2.9) print progress on stdout whatever `verbose` says, but stdout is for the result
    of the command.
    """
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter_log.setLevel(level)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Name every node after the PyTorch module that made it, as recorded in the metadata."""
    used: dict[str, int] = {}
    for node in proto.graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(
            metadata.get(_SCOPES_KEY, "[]")
        )  # modules from the root, then the operation
        module = scopes[-2].removeprefix(_MODULE_PREFIX).lstrip(".") if len(scopes) > 1 else ""
        name = f"{module}/{node.op_type}" if module else node.op_type
        count = used[name] = used.get(name, -1) + 1
        node.name = f"{name}_{count}" if count else name


def _strip_debug_metadata(proto: onnx.ModelProto) -> None:
    """Drop stack traces and file names of this machine, which are half the size of a small graph."""
    graph = proto.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    owners: list[Any] = [graph, *graph.node, *values, *graph.initializer]
    for function in proto.functions:
        owners += [function, *function.node]
    for owner in owners:
        del owner.metadata_props[:]
        if hasattr(owner, "doc_string"):
            owner.doc_string = ""
