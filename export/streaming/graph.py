"""The streaming step as one ONNX graph: a fixed chunk, a dynamic batch, states in and out.

Names, order and layout are those of NeMo's cache-aware export, which sherpa-onnx's online recognizer feeds
(edge_asr.stream_geometry, docs/streaming.md). Behind them, the graph of a model with an attention decoder
gives what that attends to. Time is dynamic too, from the shortest window to the longest,
because less precedes the first windows of a clip. The graph is simplified and checked like the offline graph.

Sources: NeMo, nemo/collections/asr/modules/conformer_encoder.py (`forward_for_export`); sherpa-onnx,
sherpa-onnx/csrc/online-nemo-ctc-model.cc (metadata) and scripts/nemo/fast-conformer-hybrid-transducer-ctc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_asr.bundle.names import ENCODED_NAME, STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.errors import GateError, require
from edge_asr.export.onnx_export import DEFAULT_OPSET, export_module
from edge_asr.export.optimize import simplify_and_compare
from edge_asr.graph.check import check_model
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    import onnx

    from edge_asr.model import ConformerCTC
    from edge_asr.model.streaming import StreamingStep

_DYNAMIC = {"audio_signal": (0, 2)}  # of the other inputs only the batch is dynamic
_EXAMPLE_BATCH = 2


def make_stream_graph(
    model: ConformerCTC, geometry: StreamingGeometry, *, opset: int = DEFAULT_OPSET
) -> onnx.ModelProto:
    """Make the streaming graph of a model: inference form, export, simplification, checks.

    Args:
        model: a model with the stream's context, in eval mode, on the CPU.
        geometry: the geometry of that context.
        opset: ONNX opset, 18 to 22.

    Raises:
        ConfigError: the opset is outside 18 to 22.
        GateError: simplification changed a number, or the graph fails its checks.
        MissingDependencyError: torch, onnx, onnxscript or onnxsim is not installed.
    """
    require("torch", extra="export")
    # Both import torch.
    from edge_asr.export.inference_form import freeze_stream_positions, to_inference_form
    from edge_asr.model.streaming import StreamingStep

    rewritten = cast("ConformerCTC", to_inference_form(model))
    freeze_stream_positions(rewritten, geometry.chunk_frames + geometry.ahead_frames, geometry.left_frames)
    step = StreamingStep(rewritten, geometry)
    graph = simplify_stream(export_stream(step, opset=opset), geometry, model.config.n_mels)
    check_stream(graph, geometry)
    return graph


def export_stream(step: StreamingStep, *, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """Export a streaming step.

    Args:
        step: the step, in eval mode, on the CPU.
        opset: ONNX opset, 18 to 22.

    Raises:
        ConfigError: the opset is outside 18 to 22.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
    """
    require("torch", extra="export")
    import torch

    geometry = step.geometry
    n_mels = step.acoustic_model.config.n_mels
    state = step.initial_state(_EXAMPLE_BATCH)
    features = torch.zeros(_EXAMPLE_BATCH, n_mels, geometry.window_frames)
    lengths = torch.tensor([geometry.window_frames] * _EXAMPLE_BATCH)
    batch = torch.export.Dim("batch")
    shapes: dict[str, Any] = {name: {0: batch} for name in STREAM_INPUTS}
    if geometry.first_window_frames < geometry.window_frames:
        # torch.export treats an axis that may be 1 as one that always is.
        shortest = max(geometry.first_window_frames, 2)
        shapes["audio_signal"][2] = torch.export.Dim("time", min=shortest, max=geometry.window_frames)
    return export_module(
        _plain_tensors(step),
        (features, lengths, *state),
        input_names=STREAM_INPUTS,
        output_names=_output_names(step.acoustic_model),
        dynamic_shapes=shapes,
        opset=opset,
    )


def _output_names(model: ConformerCTC) -> tuple[str, ...]:
    return STREAM_OUTPUTS if model.decoder is None else (*STREAM_OUTPUTS, ENCODED_NAME)


def _plain_tensors(step: StreamingStep) -> Any:
    """Wrap the step: features [B, F, T], the state as three arguments and results, encoder frames last."""
    import torch

    from edge_asr.model.streaming import StreamCaches, StreamingStep  # imports torch

    class PlainTensors(StreamingStep):
        def forward(  # type: ignore[override]
            self,
            audio_signal: torch.Tensor,
            length: torch.Tensor,
            cache_last_channel: torch.Tensor,
            cache_last_time: torch.Tensor,
            cache_last_channel_len: torch.Tensor,
        ) -> tuple[torch.Tensor, ...]:
            state = StreamCaches(cache_last_channel, cache_last_time, cache_last_channel_len)
            encoded, n_valid, following = self.encode(audio_signal.transpose(1, 2), length, state)
            outputs = (self.acoustic_model.head(encoded), n_valid, *following)
            return outputs if self.acoustic_model.decoder is None else (*outputs, encoded)

    return PlainTensors(step.acoustic_model, step.geometry).eval()


def simplify_stream(model: onnx.ModelProto, geometry: StreamingGeometry, n_mels: int) -> onnx.ModelProto:
    """Simplify a streaming graph with onnxsim; the result must give the same numbers on random inputs.

    Raises:
        GateError: onnxsim's numerical check failed.
        MissingDependencyError: onnxsim is not installed.
    """
    generator = np.random.default_rng(0)
    inputs = []
    for n_rows, n_frames in ((1, geometry.first_window_frames), (3, geometry.window_frames)):
        shapes = (geometry.cache_last_channel, geometry.cache_last_time)
        arrays = [generator.standard_normal((n_rows, *shape)).astype(np.float32) for shape in shapes]
        features = generator.standard_normal((n_rows, n_mels, n_frames)).astype(np.float32)
        lengths = np.asarray([max(n_frames - 3 * row, 1) for row in range(n_rows)])
        n_heard = np.arange(n_rows) * geometry.left_frames // max(n_rows - 1, 1)
        inputs.append(dict(zip(STREAM_INPUTS, (features, lengths, *arrays, n_heard), strict=True)))
    return simplify_and_compare(model, inputs)


def check_stream(model: onnx.ModelProto, geometry: StreamingGeometry) -> None:
    """Check a streaming graph in full: names and order of inputs and outputs, and a dynamic batch.

    Raises:
        GateError: a check failed; the message says which.
    """
    check_model(model)
    given = [value.name for value in (*model.graph.input, *model.graph.output)]
    if given not in ([*STREAM_INPUTS, *STREAM_OUTPUTS], [*STREAM_INPUTS, *STREAM_OUTPUTS, ENCODED_NAME]):
        raise GateError(
            f"the streaming graph has inputs and outputs {given}; expected NeMo's names in NeMo's order"
        )
    fixed = geometry.first_window_frames == geometry.window_frames
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        axes = (0,) if fixed else _DYNAMIC.get(value.name, (0,))
        frozen = [axis for axis in axes if dims[axis].HasField("dim_value")]
        if frozen:
            raise GateError(
                f"{value.name} of the streaming graph has the fixed axes {frozen}; they must be dynamic"
            )


def stream_metadata(geometry: StreamingGeometry) -> dict[str, str]:
    """Return what sherpa-onnx's online recognizer needs besides the metadata of the offline graph."""
    metadata = {"window_size": geometry.window_frames, "chunk_shift": geometry.shift_frames}
    for name in ("cache_last_channel", "cache_last_time"):
        for number, size in enumerate(getattr(geometry, name), start=1):
            metadata[f"{name}_dim{number}"] = size
    return {name: str(value) for name, value in metadata.items()}
