"""The steps of an attention decoder in INT8, and whether that may ship: WER of rescoring, against float32.

The products with weights become INT8 with ranges found in each run (onnxruntime's dynamic quantization): a
step is short, its activations are few, and no calibration could see the texts that a search will try. Weights
use 7 bits, as in quantizer.py. The speech that judges the encoder's INT8 is rescored by both decoders, over
the frames of the float32 encoder. A decoder that loses more than the budget, or that no text can judge, stays
float32; the rest of the bundle is not held back.
What this file does not do: quantize an encoder (int8.py), write the bundle.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.audio import read_audio
from edge_asr.bundle.manifest import AttentionDecoderInfo
from edge_asr.bundle.names import DECODER_INT8_NAME, RIGHT_DECODER_INT8_NAME
from edge_asr.bundle.writer import write_model
from edge_asr.calibration.calibration_set import CalibrationSet
from edge_asr.calibration.int8 import Int8Options
from edge_asr.calibration.measure import bootstrap_difference
from edge_asr.errors import require
from edge_asr.graph.check import MAX_IR_VERSION, check_model
from edge_asr.graph.decoder import DirectionGraphs
from edge_asr.graph.session import open_graph
from edge_asr.manifest import read_manifest
from edge_asr.metrics import compute_error_rates
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Stages
from edge_asr.runtime.decoding.attention.rescoring import RescoringDecoder, ScoreWeights
from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.decoding.choice import boundary_of
from edge_asr.runtime.decoding.decoder import F32Array
from edge_asr.runtime.features.extractor import FeatureExtractor

if TYPE_CHECKING:
    import onnx

_MAX_FRAMES = 1 << 30  # a clip is one segment


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLoss:
    """What rescoring loses with an INT8 decoder.

    Attributes:
        n_clips, n_words: measured.
        same_texts: share of the clips that have the same text.
        wer_reference, wer_candidate: with the float32 and the INT8 decoder.
        wer_loss_low, wer_loss_high: 95 % interval of the difference, paired bootstrap over the clips.
        time_ratio: time of the decoder's runs over float32's, one thread.
        float32_bytes, size_bytes: of the steps, both directions.
    """

    n_clips: int
    n_words: int
    same_texts: float
    wer_reference: float
    wer_candidate: float
    wer_loss_low: float
    wer_loss_high: float
    time_ratio: float
    float32_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Decoder:
    """The result.

    Attributes:
        steps: the quantized graphs, of each direction; empty where INT8 was refused.
        loss: None where no clip has a text.
        refusal: why there is none, in a sentence; None if there is.
    """

    steps: tuple[onnx.ModelProto, ...]
    loss: DecoderLoss | None
    refusal: str | None

    def write(self, folder: Path, info: AttentionDecoderInfo) -> AttentionDecoderInfo:
        """Write the quantized graphs into a bundle, if there are any; return the record with them."""
        if self.loss is None or not self.steps:
            return info
        ratio = self.loss.time_ratio
        artifacts = [
            write_model(folder, steps, "int8", "int8", file=file, cpu_time_over_fp32=ratio)
            for steps, file in zip(self.steps, (DECODER_INT8_NAME, RIGHT_DECODER_INT8_NAME), strict=False)
        ]
        right = info.right
        if right is not None:
            right = dataclasses.replace(right, int8=artifacts[1])
        return dataclasses.replace(info, left=dataclasses.replace(info.left, int8=artifacts[0]), right=right)

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds under "int8_decoder"."""
        loss = None if self.loss is None else dataclasses.asdict(self.loss)
        return {"loss": loss, "refusal": self.refusal}


def make_int8_decoder(
    directions: Sequence[DirectionGraphs],
    encoder: onnx.ModelProto,
    weights: ScoreWeights,
    options: Int8Options,
    chosen: CalibrationSet,
    inputs: ProofInputs,
    stages: Stages,
) -> Int8Decoder:
    """Quantize the steps of a decoder and judge the result; check `refusal`.

    Args:
        directions: the float32 graphs, from left to right and, if there is one, from right to left.
        encoder: the float32 graph, with the output that the decoder attends to.
        weights: those of the bundle.
        options: the evaluation speech and the budget.
        chosen: the calibration speech, for options without evaluation speech.
        inputs: front end and vocabulary.
        stages: those of the export.

    Raises:
        BackendError, GateError: a graph cannot be run, or is not valid.
        ManifestError, AudioError: the speech cannot be read.
    """
    require("jiwer", extra="export")
    with stages.stage("int8: decoder"):
        candidates = [dataclasses.replace(one, steps=quantize_steps(one.steps)) for one in directions]
        clips = list(_speech(options, chosen, inputs))
        if not clips:
            return Int8Decoder(
                steps=(),
                loss=None,
                refusal="the decoder stays float32: no clip has a text to judge INT8 by; give --evaluate",
            )
        loss = _measure(directions, candidates, encoder, weights, clips, inputs)
    lost, allowed = loss.wer_candidate - loss.wer_reference, options.budget.max_wer_loss
    if lost > allowed:
        refusal = (
            f"the decoder stays float32: in INT8 rescoring has a WER loss of {100 * lost:.2f} points, "
            f"{100 * allowed:g} are allowed"
        )
        return Int8Decoder(steps=(), loss=loss, refusal=refusal)
    return Int8Decoder(steps=tuple(one.steps for one in candidates), loss=loss, refusal=None)


def quantize_steps(steps: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph whose products with weights are INT8, with ranges found in each run.

    Raises:
        GateError: the result is not valid.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    require("onnxruntime", extra="cpu")
    require("onnx", extra="export")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copied = onnx.ModelProto()
    copied.CopyFrom(steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.onnx")
        quantize_dynamic(
            copied,
            path,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
            extra_options={"MatMulConstBOnly": True},
        )
        quantized = onnx.load(path)
    quantized.ir_version = min(quantized.ir_version, MAX_IR_VERSION)
    check_model(quantized)
    return quantized


def _speech(
    options: Int8Options, chosen: CalibrationSet, inputs: ProofInputs
) -> Iterator[tuple[F32Array, str]]:
    """Yield features and text of the evaluation speech, else of the calibration speech."""
    if options.evaluation:
        extractor = FeatureExtractor(inputs.features)
        for path in options.evaluation:
            for utterance in read_manifest(path).utterances:
                waveform = read_audio(utterance.audio_path, inputs.features.sample_rate)
                yield extractor(waveform), utterance.text
        return
    for clip, features in zip(chosen.clips, chosen.features(inputs.features), strict=True):
        if clip.text is not None and clip.kind == "speech" and clip.gain_db == 0:
            yield features, clip.text


class _Timed:
    """A network that counts the seconds of its runs."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def advance(self, *inputs: Any) -> Any:
        """See `DecoderNetwork`."""
        began = time.perf_counter()
        result = self._network.advance(*inputs)
        self.seconds += time.perf_counter() - began
        return result


def _measure(
    directions: Sequence[DirectionGraphs],
    candidates: Sequence[DirectionGraphs],
    encoder: onnx.ModelProto,
    weights: ScoreWeights,
    clips: Sequence[tuple[F32Array, str]],
    inputs: ProofInputs,
) -> DecoderLoss:
    vocabulary = inputs.vocabulary
    with ExitStack() as stack:
        networks = [
            [_Timed(stack.enter_context(one.open(num_threads=1))) for one in some]
            for some in (directions, candidates)
        ]
        decoders = [
            RescoringDecoder(
                BeamDecoder(vocabulary.blank_id),
                *some,
                weights=weights,
                boundary_id=boundary_of(vocabulary),
                max_frames=_MAX_FRAMES,
            )
            for some in networks
        ]
        backend = stack.enter_context(open_graph(encoder))
        errors, n_words, same = [], [], 0
        for features, text in clips:
            log_probs, encoded = backend.encode(features[None], np.array([len(features)]))
            n_valid = inputs.output_frames.n_valid(len(features))
            texts = []
            for decoder in decoders:
                decoder = decoder.fork()
                decoder.push_encoded(log_probs[0, :n_valid], encoded[0, :n_valid])
                texts.append(vocabulary.decode(decoder.flush().tokens.ids.tolist()))
            same += texts[0] == texts[1]
            rates = [compute_error_rates([text], [heard], normalization="none") for heard in texts]
            errors.append([rate.substitutions + rate.deletions + rate.insertions for rate in rates])
            n_words.append(rates[0].n_words)
        spent = [sum(network.seconds for network in some) for some in networks]
    counts, words = np.array(errors), np.array(n_words)
    total = max(int(words.sum()), 1)
    low, high = bootstrap_difference(counts[:, 1] - counts[:, 0], words)
    return DecoderLoss(
        n_clips=len(clips),
        n_words=int(words.sum()),
        same_texts=same / len(clips),
        wer_reference=float(counts[:, 0].sum() / total),
        wer_candidate=float(counts[:, 1].sum() / total),
        wer_loss_low=low,
        wer_loss_high=high,
        time_ratio=spent[1] / max(spent[0], 1e-9),
        float32_bytes=sum(one.steps.ByteSize() for one in directions),
        size_bytes=sum(one.steps.ByteSize() for one in candidates),
    )
