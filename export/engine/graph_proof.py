"""Proves the graph of an engine on the CPU before it is built, as an export proves model.fp16.onnx.

The INT8 file was proven with float32 around its products, and an engine computes half there. No value may
come near half's end of range, and with half rounding after every node the graph must agree with the float32
model nearly as often as the INT8 file does. That takes seconds, a build many minutes, and it needs no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.bundle.names import STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.errors import GateError, require
from edge_asr.export.engine.model import arrange_model, make_engine_model
from edge_asr.export.engine.proof import BARS
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.fp16.proof import Fp16Proof, pooled_agreement, prove_fp16
from edge_asr.export.fp16.rounding import round_every_value
from edge_asr.graph.check import check_graph
from edge_asr.graph.mapped import MappedGraph
from edge_asr.graph.session import CpuSession
from edge_asr.graph.weights import load_float32
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Outputs, run_cases
from edge_asr.proof.stages import Progress
from edge_asr.proof.streams import LockstepStreams
from edge_asr.runtime.engine.lookup import artifact_of
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
# What half may cost besides: a share of the frames, or this many where there are few.
_MAX_LOSS = 0.005
_MIN_FRAMES = 2
_MIN_INT8_FRAMES = 5  # of an INT8 stream beside another INT8 stream: both round


def prove_int8_graph(
    bundle: Bundle,
    waveforms: Mapping[str, F32Array],
    max_frames: int,
    progress: Progress | None = None,
) -> Fp16Proof:
    """Compare the INT8 graph of an engine with the float32 model, beside the INT8 file; raise if it fails.

    Args:
        bundle: has both files.
        waveforms: real recordings by name, [S] float32 at the model's rate.
        max_frames: feature frames of the longest clip; recordings are cut to it.
        progress: called after each recording of both runs.

    Raises:
        GateError: it agrees less often, or a value leaves half's range.
        BundleError: a file is missing.
    """
    cases = _cases(bundle, waveforms, max_frames)
    expected, today = (_run(bundle, precision, cases) for precision in _PRECISIONS)
    model = arrange_model(bundle, "int8", max_frames=max_frames)
    half = convert_to_fp16(model)
    check_graph(half)
    proof = prove_fp16(
        model,
        half,
        cases,
        expected,
        bundle.vocabulary,
        bundle.info.output_frames,
        min_agreement=pooled_agreement(expected, today) - _allowed(bundle, cases),
        progress=progress,
    )
    if not proof.passed:
        raise GateError(
            "the INT8 graph of an engine, with half between its products, agrees with the float32 model less "
            f"often than {bundle.artifact('int8').file} does: {proof.failure_message()}"
        )
    return proof


def prove_stream_graph(bundle: Bundle, precision: Precision, waveforms: Mapping[str, F32Array]) -> float:
    """Run the stream of an FP16 or INT8 engine with half rounding, beside the stream of the bundle.

    That is the float32 one; where a bundle streams in INT8 alone, as the embedded model does, the INT8 file.

    Args:
        bundle: has the files.
        precision: "fp16" or "int8".
        waveforms: real recordings by name, [S] float32 at the model's rate.

    Returns:
        The share of frames that agree with it.

    Raises:
        GateError: an FP16 stream differs in more than a few frames, an INT8 one in more than its file does
            or, beside that file, in more than an INT8 engine may.
        BundleError: a file is missing.
    """
    onnx = require("onnx", extra="export")
    cases, original = _cases(bundle, waveforms), bundle.streaming.artifact
    path, base = bundle.path / original.file, 1.0
    if original.precision == "int8":
        expected = _run_stream(bundle, onnx.load(path), cases)
        allowed = max(_allowed(bundle, cases, _MIN_INT8_FRAMES), 1 - BARS["int8"].min_agreement)
    else:
        expected, allowed = _run_stream(bundle, load_float32(path), cases), _allowed(bundle, cases)
        if precision == "int8":
            today = onnx.load(bundle.path / artifact_of(bundle, "int8", "stream").file)
            base = pooled_agreement(expected, _run_stream(bundle, today, cases))
    rounded = round_every_value(make_engine_model(bundle, precision, stream=True))
    agreement = pooled_agreement(expected, _run_stream(bundle, rounded, cases, optimize=False))
    if agreement < base - allowed:
        raise GateError(
            f"the {precision} stream of an engine agrees with {original.file} in {agreement:.3%} of the "
            f"frames, {base - allowed:.1%} are needed; build another precision, or none (--streams 0)"
        )
    return agreement


def _run(bundle: Bundle, precision: Precision, cases: Sequence[ProofCase]) -> Outputs:
    backend = OnnxRuntimeBackend(bundle.artifact_path(precision), precision=precision)
    try:
        return run_cases(backend, cases, bundle.info.output_frames)
    finally:
        backend.close()


class _SessionStep:
    """A streaming graph in a plain session, as a `Step`."""

    def __init__(self, session: CpuSession, geometry: StreamingGeometry) -> None:
        self._session, self.geometry = session, geometry

    def initial_caches(self, batch: int = 1) -> Any:
        """See `Step`."""
        shapes = (self.geometry.cache_last_channel, self.geometry.cache_last_time)
        return *(np.zeros((batch, *shape), np.float32) for shape in shapes), np.zeros(batch, np.int64)

    def run_step(
        self, features: F32Array, feature_lens: npt.NDArray[np.int64], caches: Any
    ) -> tuple[F32Array, npt.NDArray[np.int64], Any]:
        """See `Step`."""
        window = np.ascontiguousarray(features.transpose(0, 2, 1))
        feeds = dict(zip(STREAM_INPUTS, (window, feature_lens, *caches), strict=True))
        log_probs, n_valid, *following = self._session.run(STREAM_OUTPUTS, feeds)
        return log_probs, n_valid, following


def _run_stream(
    bundle: Bundle, model: onnx.ModelProto, cases: Sequence[ProofCase], *, optimize: bool = True
) -> Outputs:
    with MappedGraph(model) as graph, CpuSession(graph, optimize=optimize, num_threads=1) as session:
        streams = LockstepStreams(_SessionStep(session, bundle.streaming.geometry))
        return run_cases(streams, cases, bundle.info.output_frames)


def _cases(
    bundle: Bundle, waveforms: Mapping[str, F32Array], max_frames: int | None = None
) -> list[ProofCase]:
    extract = FeatureExtractor(bundle.info.features)
    return [
        ProofCase(family="real", name=name, features=(extract(waveform)[:max_frames],))
        for name, waveform in waveforms.items()
    ]


def _allowed(bundle: Bundle, cases: Sequence[ProofCase], min_frames: int = _MIN_FRAMES) -> float:
    n_frames = sum(bundle.info.output_frames.n_valid(length) for case in cases for length in case.lengths)
    return max(_MAX_LOSS, min_frames / n_frames)
