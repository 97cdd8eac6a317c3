"""An ONNX graph run by onnxruntime: as the runtime's own backend for proofs, or as a bare session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from edge_asr.errors import GateError, require
from edge_asr.graph.mapped import MappedGraph
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

if TYPE_CHECKING:
    import onnx


@contextmanager
def open_graph(
    model: onnx.ModelProto | MappedGraph,
    *,
    precision: str = "fp32",
    num_threads: int | None = None,
    rewritten: bool = False,
) -> Iterator[OnnxRuntimeBackend]:
    """Open a graph as a backend, closed at the end of the block.

    Args:
        model: a graph with the bundle's input and output names; one that is mapped already stays open.
        precision: precision of the graph, for messages.
        num_threads, rewritten: as for `OnnxRuntimeBackend`.

    Raises:
        BackendError: onnxruntime cannot load it.
    """
    with nullcontext(model) if isinstance(model, MappedGraph) else MappedGraph(model) as graph:
        graph.return_memory()
        backend = OnnxRuntimeBackend(
            graph.path, precision=precision, num_threads=num_threads, rewritten=rewritten
        )
        try:
            yield backend
        finally:
            backend.close()


class CpuSession:
    """A plain onnxruntime session on the CPU, for who needs other tensors than the bundle's.

    Args:
        graph: what to run; it may be closed while the session lives.
        optimize: False runs the graph as it is written.
        num_threads: threads of onnxruntime; None is its default.

    Raises:
        GateError: onnxruntime cannot load it.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, graph: MappedGraph, *, optimize: bool = True, num_threads: int | None = None) -> None:
        onnxruntime = require("onnxruntime", extra="cpu")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # lengths differ from run to run
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
            options.inter_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        graph.return_memory()
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises a dozen classes without a common base
            raise GateError(
                f"onnxruntime {onnxruntime.__version__} cannot load the graph: {error}"
            ) from error

    def __enter__(self) -> CpuSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the session; it cannot run after that."""
        self._session = None

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """The named outputs, or all of them, for inputs by name."""
        outputs: list[Any] = self._session.run(names, dict(feeds))
        return outputs

    def types(self) -> dict[str, str]:
        """onnxruntime's type of each input and output, such as "tensor(float)"."""
        return {v.name: v.type for v in (*self._session.get_inputs(), *self._session.get_outputs())}
