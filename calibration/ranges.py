"""Collects ranges of activations: runs a float32 graph over calibration clips and keeps what INT8 needs.

The graph gains an output for every requested tensor. onnxruntime runs one clip at a time, and each tensor
goes straight into a histogram of fixed size (histogram.py). Memory is that of the requested tensors of one
clip, whatever the number of clips, and grows with the square of a clip's length if attention scores are among
them. One pass serves every method.
What this file does not do: decide which tensors matter, choose clips, insert Q/DQ nodes.

onnxruntime's own calibrators (1.32) were tried and rejected: min-max drops NaN silently, a quiet clip before
a loud one makes histograms of many thousands of bins or fails, and both steps are slower.
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

#: The graph's inputs by name, for one unpadded clip.
Batch = Mapping[str, npt.NDArray[Any]]
F32Array = npt.NDArray[np.float32]


class ActivationStatistics:
    """Histograms of |x| by tensor, over all clips, made by `collect_statistics`."""

    def __init__(self, histograms: Mapping[str, MagnitudeHistogram], n_clips: int) -> None:
        self.histograms = dict(histograms)
        self.n_clips = n_clips

    def amax(self, method: RangeMethod, *, percentile: float = DEFAULT_PERCENTILE) -> dict[str, float]:
        """Compute symmetric ranges; the int8 scale of a tensor is its amax / 127.

        Args:
            method: "minmax", the largest magnitude; "entropy", the least Kullback-Leibler divergence;
                "percentile", the magnitude that this share of the values does not exceed; "mse", the least
                squared error.
            percentile: percentile in percent, for "percentile".

        Returns:
            amax by tensor, in the requested order; at least 1e-6.

        Raises:
            ConfigError: the method is unknown, or the percentile is outside (0, 100].
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
        tensors: float32 activations, which are graph inputs or outputs of nodes.
        batches: the clips, each alone and unpadded; read once, one at a time.
        num_threads: threads of onnxruntime.
        progress: called after each clip.

    Raises:
        ConfigError: there is no clip, or a name is not a float32 activation of the graph.
        GateError: a tensor has a NaN or infinite value; the message names the tensor and the clip.
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
    """Collect the largest magnitude of every channel of the named tensors; channels are the last axis.

    Returns:
        [C] float32 by tensor; 0 for a channel that is always 0.

    Raises:
        See `collect_statistics`.
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
    """Yield (clip counted from 1, tensor, values) for every clip and tensor."""
    names = list(dict.fromkeys(tensors))
    _check_tensors(model, names)
    # Outputs that are also inputs come back broken (onnxruntime issue 21922), so they are read from the feed.
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
            what = "a weight" if name in weights else "not in the graph"
            raise ConfigError(
                f"tensor {name!r} is {what}; name outputs of nodes or inputs of this graph as it is now "
                "(rewrites rename tensors)"
            )


def _not_finite(name: str, clip: int, why: object) -> GateError:
    return GateError(
        f"tensor {name!r} is not finite in calibration clip {clip} (counted from 1): {why}; "
        "check that clip's sound, or the model's weights"
    )
