"""Whole clips or the steps of a stream: how INT8 feeds a graph to collect ranges, and runs it to measure.

A stream is calibrated on what it will see: windows of features with the caches that the float32 graph leaves.
What this file does not do: keep what a run gives (ranges.py, measure.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import INPUT_NAMES, STREAM_INPUTS
from edge_asr.graph.session import open_graph
from edge_asr.proof.streams import LockstepStreams, open_stream
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    import onnx

    from edge_asr.calibration.ranges import Batch
    from edge_asr.graph.mapped import MappedGraph
    from edge_asr.proof.compare import LogProbModel

F32Array = npt.NDArray[np.float32]


class Feeds(Protocol):
    """Inputs of a graph by name, to be gone through several times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class GraphForm(Protocol):
    """A kind of graph, such as `WHOLE_CLIPS`."""

    @property
    def label(self) -> str:
        """What the stages of its quantization begin with."""
        ...

    def open(
        self,
        model: onnx.ModelProto | MappedGraph,
        *,
        num_threads: int | None = None,
        rewritten: bool = False,
    ) -> AbstractContextManager[LogProbModel]:
        """Open a graph of this kind as a model of whole clips, closed at the end of the block."""
        ...

    def feeds(self, model: onnx.ModelProto, clips: Sequence[F32Array]) -> Feeds:
        """Make the inputs of all runs over clips [T, n_mels], each alone and unpadded.

        Args:
            model: the float32 graph, whose caches a stream is fed with.
            clips: features of each clip.
        """
        ...


class WholeClips:
    """An offline graph: one run a clip."""

    label = "int8"

    def open(
        self,
        model: onnx.ModelProto | MappedGraph,
        *,
        num_threads: int | None = None,
        rewritten: bool = False,
    ) -> AbstractContextManager[LogProbModel]:
        """See `GraphForm`."""
        return open_graph(model, num_threads=num_threads, rewritten=rewritten)

    def feeds(self, model: onnx.ModelProto, clips: Sequence[F32Array]) -> Feeds:
        """See `GraphForm`; views, so that the list costs nothing."""
        audio, length = INPUT_NAMES
        return [{audio: clip.T[None], length: np.asarray([len(clip)], np.int64)} for clip in clips]


WHOLE_CLIPS = WholeClips()


class StreamSteps:
    """A streaming graph: one run a step."""

    label = "int8 stream"

    def __init__(self, geometry: StreamingGeometry, *, n_mels: int, vocab_size: int) -> None:
        self.geometry = geometry
        self._sizes: dict[str, Any] = {"n_mels": n_mels, "vocab_size": vocab_size}

    @contextmanager
    def open(
        self,
        model: onnx.ModelProto | MappedGraph,
        *,
        num_threads: int | None = None,
        rewritten: bool = False,
    ) -> Iterator[LockstepStreams]:
        """See `GraphForm`."""
        options = {**self._sizes, "num_threads": num_threads, "rewritten": rewritten}
        with open_stream(model, self.geometry, **options) as step:
            yield LockstepStreams(step)

    def feeds(self, model: onnx.ModelProto, clips: Sequence[F32Array]) -> Feeds:
        """See `GraphForm`; the caches are computed again each time, because all of them take gigabytes."""
        return _StepFeeds(self, model, clips)


class _StepFeeds:
    def __init__(self, form: StreamSteps, model: onnx.ModelProto, clips: Sequence[F32Array]) -> None:
        self._form, self._model, self._clips = form, model, clips

    def __len__(self) -> int:
        geometry = self._form.geometry
        counts = (geometry.output_frames.n_valid(len(clip)) for clip in self._clips)
        return sum(-(-count // geometry.chunk_frames) for count in counts)

    def __iter__(self) -> Iterator[Batch]:
        with self._form.open(self._model, num_threads=1) as streams:
            for clip in self._clips:
                for step in streams.steps(clip[None], np.asarray([len(clip)], np.int64)):
                    window = np.ascontiguousarray(step.window.transpose(0, 2, 1))
                    yield dict(zip(STREAM_INPUTS, (window, step.lengths, *step.caches), strict=True))
