"""The attention decoder of a checkpoint: exported, proven, and written into a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import edge_asr
from edge_asr.bundle.manifest import AttentionDecoderInfo, DecoderGraphs
from edge_asr.bundle.names import (
    DECODER_CROSS_NAME,
    DECODER_NAME,
    RIGHT_DECODER_CROSS_NAME,
    RIGHT_DECODER_NAME,
)
from edge_asr.bundle.writer import write_model
from edge_asr.calibration.decoders import Int8Decoder
from edge_asr.export.decoders.graph import make_direction
from edge_asr.export.decoders.proof import decoder_cases, prove_direction, prove_encoder
from edge_asr.graph.decoder import DirectionGraphs
from edge_asr.proof.compare import ProofStep
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Stages
from edge_asr.runtime.decoding.attention.rescoring import ScoreWeights

if TYPE_CHECKING:
    import onnx

    from edge_asr.checkpoints import Checkpoint

DEFAULT_CTC_WEIGHT = 0.5
"""More suits a weak decoder, less a strong one (docs/results)."""
DEFAULT_REVERSE_WEIGHT = 0.3
"""WeNet's recipes of U2++."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderGraph:
    """The graphs of a checkpoint's decoder and their proof.

    Attributes:
        kind, ctc_weight, reverse_weight: see `AttentionDecoderInfo`.
        left, right: its directions.
        steps: the comparisons, in order.
        int8: what INT8 makes of it; None where nobody asked.
    """

    kind: str
    ctc_weight: float
    reverse_weight: float
    left: DirectionGraphs
    right: DirectionGraphs | None
    steps: tuple[ProofStep, ...]
    int8: Int8Decoder | None = None

    @property
    def directions(self) -> tuple[DirectionGraphs, ...]:
        """Return `left` and, if there is one, `right`."""
        return (self.left,) if self.right is None else (self.left, self.right)

    @property
    def weights(self) -> ScoreWeights:
        """Return how rescoring mixes scores by default."""
        return ScoreWeights(ctc=self.ctc_weight, reverse=self.reverse_weight)

    def write(self, folder: Path) -> AttentionDecoderInfo:
        """Write the files into a bundle, and describe them."""
        files = (
            (DECODER_CROSS_NAME, DECODER_NAME),
            (RIGHT_DECODER_CROSS_NAME, RIGHT_DECODER_NAME),
        )
        written = [
            DecoderGraphs(
                cross=write_model(folder, graphs.cross, "fp32", "fp32", file=cross),
                steps=write_model(folder, graphs.steps, "fp32", "fp32", file=steps),
                state=graphs.state,
            )
            for graphs, (cross, steps) in zip(self.directions, files, strict=False)
        ]
        info = AttentionDecoderInfo(
            kind=self.kind,
            n_tokens=self.left.n_tokens,
            sos_id=self.left.sos_id,
            eos_id=self.left.eos_id,
            left=written[0],
            right=written[1] if len(written) > 1 else None,
            ctc_weight=self.ctc_weight,
            reverse_weight=self.reverse_weight,
        )
        return info if self.int8 is None else self.int8.write(folder, info)


def make_decoder(
    checkpoint: Checkpoint,
    encoder: onnx.ModelProto,
    inputs: ProofInputs,
    stages: Stages,
    *,
    name: str,
    opset: int,
) -> DecoderGraph:
    """Export the decoder of a checkpoint that has one and prove it; check the `steps` of the result.

    Args:
        checkpoint: what to export.
        encoder: its float32 graph.
        inputs: those of the proof.
        stages: those of the export.
        name: that of the model, for the metadata of the graphs.
        opset: ONNX opset, 18 to 22.

    Raises:
        ConfigError: the opset is outside 18 to 22.
        GateError: a graph fails its checks, or PyTorch itself fails.
    """
    model = checkpoint.build_model()
    metadata = {"model_author": "edge-asr", "comment": f"{name}, exported by edge-asr {edge_asr.__version__}"}
    directions: list[DirectionGraphs] = []
    steps: list[ProofStep] = []
    for label, decoder in (("decoder", model.decoder), ("right decoder", model.right_decoder)):
        if decoder is None:
            continue
        with stages.stage(f"export: {label}"):
            cases = decoder_cases(model, decoder, inputs, reverse=label != "decoder")
            graphs = make_direction(decoder, model.config.d_model, metadata=metadata, opset=opset)
        with stages.stage(f"prove: {label}"):
            steps += prove_direction(decoder, graphs, cases, name=label)
        directions.append(graphs)
    with stages.stage("prove: encoder"):
        steps = [prove_encoder(model.float(), encoder, inputs), *steps]
    assert model.decoder is not None
    facts = checkpoint.facts
    reverse = 0.0 if model.right_decoder is None else DEFAULT_REVERSE_WEIGHT
    return DecoderGraph(
        kind=model.decoder.config.kind,
        ctc_weight=DEFAULT_CTC_WEIGHT if facts.ctc_weight is None else facts.ctc_weight,
        reverse_weight=reverse if facts.reverse_weight is None else facts.reverse_weight,
        left=directions[0],
        right=directions[1] if len(directions) > 1 else None,
        steps=tuple(steps),
    )
