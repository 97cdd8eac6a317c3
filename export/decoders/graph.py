"""An attention decoder as two ONNX graphs: what every step attends to, and the step.

    decoder_cross.onnx   encoded [1, T, D] -> cross_0, cross_1, ...
    decoder.onnx         tokens [B, U], memory_lengths [1], state_0, ..., cross_0, ...
                         -> logprobs [B, U, V], next_0, ...

The second serves a step of a search (U = 1 behind a state) and whole texts (U = n behind the initial state).
All beams of an utterance share its cross tensors, whose batch is one. Which axis of a state is the batch, and
which grows, is found by asking the decoder for states, so every kind of decoder exports alike.
What this file does not do: compare with PyTorch (proof.py), quantize (edge_asr.calibration.decoders).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.bundle.names import (
    DECODER_CROSS,
    DECODER_LENGTHS,
    DECODER_NEXT,
    DECODER_STATE,
    DECODER_TOKENS,
    ENCODED_NAME,
    OUTPUT_NAME,
)
from edge_asr.errors import GateError, require
from edge_asr.export.onnx_export import export_module
from edge_asr.export.optimize import set_metadata, simplify_and_compare
from edge_asr.graph.check import check_model
from edge_asr.graph.decoder import DirectionGraphs

if TYPE_CHECKING:
    import onnx
    import torch

    from edge_asr.model.decoders import AttentionDecoder

#: Beams, new tokens, tokens before, and frames to trace with: all different, and none an axis of one.
_BEAMS, _NEW, _BEFORE, _FRAMES = 3, 4, 5, 7


def make_direction(
    decoder: AttentionDecoder, d_memory: int, *, metadata: Mapping[str, str], opset: int
) -> DirectionGraphs:
    """Export one decoder, simplify its graphs and check them.

    Args:
        decoder: in eval mode, on the CPU, in float32.
        d_memory: width of the encoder.
        metadata: of the graphs.
        opset: ONNX opset, 18 to 22.

    Raises:
        ConfigError: the opset is outside 18 to 22.
        GateError: simplification changed a number, or a graph fails its checks.
        MissingDependencyError: torch, onnx, onnxscript or onnxsim is not installed.
    """
    require("torch", extra="export")
    import torch

    from edge_asr.export.decoders.lstm import OnnxLstm

    state = tuple(_state_shape(*pair) for pair in zip(*map(decoder.initial_state, (2, 3)), strict=True))
    with torch.no_grad():
        crosses = [decoder.cross(torch.zeros(1, n, d_memory)) for n in (_FRAMES, _FRAMES + 1)]
    time_axes = [_differing_axis(a.shape, b.shape) for a, b in zip(*crosses, strict=True)]
    batch, new, before, time = (torch.export.Dim(name) for name in ("batch", "new", "before", "time"))
    names = [f"{DECODER_CROSS}{i}" for i in range(len(time_axes))]
    cross = export_module(
        _cross_module(decoder),
        (torch.zeros(1, _FRAMES, d_memory),),
        input_names=(ENCODED_NAME,),
        output_names=names,
        dynamic_shapes={ENCODED_NAME: {1: time}},
        opset=opset,
    )
    rewritten = copy.deepcopy(decoder)
    for name, module in decoder.named_children():
        if isinstance(module, torch.nn.LSTM):
            rewritten.add_module(name, OnnxLstm(module))
    tokens = torch.full((_BEAMS, _NEW), decoder.sos_id)
    lengths = torch.tensor([_FRAMES])
    example = tuple(torch.zeros(_sizes(shape, _BEAMS, _BEFORE)) for shape in state)
    steps = export_module(
        _steps_module(rewritten),
        (tokens, lengths, example, crosses[0]),
        input_names=(DECODER_TOKENS, DECODER_LENGTHS, *_numbered(DECODER_STATE, state), *names),
        output_names=(OUTPUT_NAME, *_numbered(DECODER_NEXT, state)),
        dynamic_shapes={
            "tokens": {0: batch, 1: new},
            "memory_lengths": {},
            "state": tuple(
                {axis: batch if n == -1 else before for axis, n in enumerate(shape) if n < 1}
                for shape in state
            ),
            "cross": tuple({axis: time} for axis in time_axes),
        },
        opset=opset,
    )
    cross, steps = _simplify(decoder, cross, steps, state, names, d_memory)
    for graph in (cross, steps):
        set_metadata(graph, metadata)
        check_model(graph)
    ids = {"n_tokens": decoder.n_tokens, "sos_id": decoder.sos_id, "eos_id": decoder.eos_id}
    return DirectionGraphs(cross=cross, steps=steps, state=state, **ids)


def _simplify(
    decoder: AttentionDecoder,
    cross: onnx.ModelProto,
    steps: onnx.ModelProto,
    state: tuple[tuple[int, ...], ...],
    names: list[str],
    d_memory: int,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Simplify both graphs; they must give the same numbers for a step, whole texts, and one frame."""
    import torch

    random = np.random.default_rng(0)
    memories, feeds = [], []
    for n_beams, n_new, n_before, n_frames in ((1, 1, 0, 1), (3, 1, 6, 40), (2, 9, 0, 23)):
        memory = random.standard_normal((1, n_frames, d_memory)).astype(np.float32)
        with torch.no_grad():
            tensors = decoder.cross(torch.from_numpy(memory))
        shapes = [_sizes(shape, n_beams, n_before) for shape in state]
        memories.append({ENCODED_NAME: memory})
        feed: dict[str, Any] = {
            DECODER_TOKENS: random.integers(0, decoder.n_tokens, (n_beams, n_new)),
            DECODER_LENGTHS: np.array([n_frames]),
        }
        feed |= {
            name: random.standard_normal(shape).astype(np.float32)
            for name, shape in zip(_numbered(DECODER_STATE, state), shapes, strict=True)
        }
        feeds.append(feed | {name: t.numpy() for name, t in zip(names, tensors, strict=True)})
    return simplify_and_compare(cross, memories), simplify_and_compare(steps, feeds)


def _cross_module(decoder: AttentionDecoder) -> torch.nn.Module:
    import torch

    class Cross(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, encoded: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return decoder.cross(encoded)

    return Cross().eval()


def _steps_module(decoder: AttentionDecoder) -> torch.nn.Module:
    import torch

    class Steps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(
            self,
            tokens: torch.Tensor,
            memory_lengths: torch.Tensor,
            state: tuple[torch.Tensor, ...],
            cross: tuple[torch.Tensor, ...],
        ) -> tuple[torch.Tensor, ...]:
            log_probs, following = decoder.advance(tokens, state, cross, memory_lengths)
            return (log_probs, *following)

    return Steps().eval()


def _numbered(prefix: str, state: tuple[tuple[int, ...], ...]) -> list[str]:
    return [f"{prefix}{i}" for i in range(len(state))]


def _sizes(shape: tuple[int, ...], n_beams: int, n_before: int) -> list[int]:
    return [n_beams if n == -1 else n_before if n == 0 else n for n in shape]


def _state_shape(of_two: torch.Tensor, of_three: torch.Tensor) -> tuple[int, ...]:
    axis = _differing_axis(of_two.shape, of_three.shape)
    return tuple(-1 if place == axis else n for place, n in enumerate(of_two.shape))


def _differing_axis(one: torch.Size, other: torch.Size) -> int:
    differing = [axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    if len(differing) != 1:
        raise GateError(
            f"a tensor of the decoder has the shapes {list(one)} and {list(other)}; one axis must differ"
        )
    return differing[0]
