"""Ranges of activations: run a float32 graph over calibration clips and keep what INT8 needs to know.

The graph gains an output for every tensor asked for; onnxruntime runs one clip at a time and each tensor
goes straight into a fixed-size histogram (histogram.py). Memory is that of the asked tensors of one clip,
whatever the number of clips, and grows with the square of a clip's length where attention scores are
among them. One pass serves every method. Which tensors matter, choosing the clips and inserting Q/DQ
nodes are elsewhere.

onnxruntime's own calibrators were tried (1.32) and left: min-max drops NaN without a word, a quiet clip
ahead of a loud one makes histograms of many thousands of bins or fails, and both steps are slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edge_asr.calibration.histogram import MIN_AMAX, MagnitudeHistogram, peak_magnitude
from edge_asr.errors import ConfigError, GateError
from edge_asr.graph.mapped import MappedGraph
from edge_asr.graph.session import CpuSession
from edge_asr.proof.stages import Progress

if TYPE_CHECKING:
    import onnx

RangeMethod = Literal["minmax", "entropy", "percentile", "mse"]
DEFAULT_PERCENTILE = 99.99

#: One clip, unpadded: the graph's inputs by name.
Batch = Mapping[str, npt.NDArray[Any]]
F32Array = npt.NDArray[np.float32]


class ActivationStatistics:
    """Histograms of |x| by tensor, over all clips. Made by `collect_statistics`."""

    def __init__(self, histograms: Mapping[str, MagnitudeHistogram], n_clips: int) -> None:
        self.histograms = dict(histograms)
        self.n_clips = n_clips

    def amax(self, method: RangeMethod, *, percentile: float = DEFAULT_PERCENTILE) -> dict[str, float]:
        """Symmetric ranges: the int8 scale of a tensor is its amax / 127.

        Args:
            method: "minmax", the largest magnitude; "entropy", the least Kullback-Leibler divergence;
                "percentile", what that share of the values stays within; "mse", the least squared error.
            percentile: in per cent, for "percentile".

        Returns:
            amax by tensor, in the order they were asked for; at least 1e-6.

        Raises:
            ConfigError: an unknown method, or a percentile outside (0, 100].
        """
        if method not in get_args(RangeMethod):
            raise ConfigError(
                f"range method is {method!r}; it must be one of {', '.join(get_args(RangeMethod))}"
            )
        if method == "minmax":
            return {name: max(h.peak, MIN_AMAX) for name, h in self.histograms.items()}
        if method == "entropy":
            return {name: h.entropy_amax() for name, h in self.histograms.items()}
        if method == "mse":
            return {name: h.mse_amax() for name, h in self.histograms.items()}
        return {name: h.percentile_amax(percentile) for name, h in self.histograms.items()}


def collect_statistics(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    *,
    num_threads: int = 1,
    progress: Progress | None = None,
) -> ActivationStatistics:
    """Run the model over the clips and gather the histogram of every named tensor.

    Args:
        model: float32 graph with its weights inside.
        tensors: activations: graph inputs or outputs of nodes, float32.
        batches: the clips, each alone and unpadded; read once, one at a time.
        num_threads: of onnxruntime.
        progress: called after each clip.

    Raises:
        ConfigError: no clip, or a name that is no float32 activation of the graph.
        GateError: a tensor has a NaN or infinite value; names the tensor and the clip.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    histograms = {name: MagnitudeHistogram() for name in tensors}
    n_clips = 0
    for n_clips, name, values in _run(model, tensors, batches, num_threads, progress):
        try:
            histograms[name].add(values)
        except ValueError as error:
            raise _not_finite(name, n_clips, error) from error
    return ActivationStatistics(histograms, n_clips)


def collect_channel_amax(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    *,
    num_threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, F32Array]:
    """Largest magnitude of every channel of the named tensors, the channels being the last axis.

    Returns:
        [C] float32 by tensor; 0 for a channel that is always 0.

    Raises:
        As `collect_statistics`.
    """
    peaks: dict[str, F32Array] = {}
    for n_clips, name, values in _run(model, tensors, batches, num_threads, progress):
        peak = peak_magnitude(values)
        if not np.isfinite(peak):
            raise _not_finite(name, n_clips, f"its largest magnitude is {peak}")
        channels = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0, initial=0.0)
        peaks[name] = np.maximum(peaks[name], channels) if name in peaks else channels
    return {name: peaks[name] for name in dict.fromkeys(tensors)}


def _run(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Batch],
    num_threads: int,
    progress: Progress | None,
) -> Iterator[tuple[int, str, F32Array]]:
    """(clip counted from 1, tensor, values) for every clip and tensor."""
    names = list(dict.fromkeys(tensors))
    _check_tensors(model, names)
    # Outputs that are also inputs come back broken (onnxruntime issue 21922): they are read from the feed.
    inputs = {value.name for value in model.graph.input}
    fetched = [name for name in names if name not in inputs]
    total = len(batches) if isinstance(batches, Sized) else 0
    clip = 0
    with (
        MappedGraph(model, outputs=fetched) as graph,
        CpuSession(graph, num_threads=num_threads) as session,
    ):
        types = session.types()
        wrong = [name for name in names if types[name] != "tensor(float)"]
        if wrong:
            raise ConfigError(
                f"tensor {wrong[0]!r} is {types[wrong[0]]}; only float32 activations have a range"
            )
        for clip, batch in enumerate(batches, start=1):
            outputs = dict(zip(fetched, session.run(fetched, batch) if fetched else [], strict=True))
            for name in names:  # popped, so that a clip's activations are gone before the next one runs
                yield clip, name, batch[name] if name in inputs else outputs.pop(name)
            if progress is not None:
                progress(clip, total)
    if clip == 0:
        raise ConfigError(
            "there is no calibration clip; ranges need at least one, and minutes of speech to be good"
        )


def _check_tensors(model: onnx.ModelProto, names: Sequence[str]) -> None:
    graph = model.graph
    known = {name for node in graph.node for name in node.output if name}
    known |= {value.name for value in graph.input}
    weights = {initializer.name for initializer in graph.initializer}
    for name in names:
        if name in weights or name not in known:
            what = "a weight" if name in weights else "not there"
            raise ConfigError(
                f"tensor {name!r} is {what}; name outputs of nodes or inputs of this graph as it is now "
                "(rewrites rename tensors)"
            )


def _not_finite(name: str, clip: int, why: object) -> GateError:
    return GateError(
        f"tensor {name!r} is not finite in calibration clip {clip} (counted from 1): {why}; "
        "check that clip's sound, or the model's weights"
    )
