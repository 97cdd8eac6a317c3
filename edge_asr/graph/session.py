"""An ONNX graph in memory, run by the runtime's own onnxruntime backend: for proofs and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.graph.weightless import mapped_file, return_memory
from edge_asr.runtime.backends import OnnxRuntimeBackend

if TYPE_CHECKING:
    import onnx


@contextmanager
def open_graph(
    model: onnx.ModelProto | Path,
    *,
    precision: str = "fp32",
    num_threads: int | None = None,
    rewritten: bool = False,
) -> Iterator[OnnxRuntimeBackend]:
    """Open a graph as a backend, closed at the end of the block.

    Args:
        model: a graph with the bundle's input and output names, or a file from `mapped_file`.
        precision: precision of the graph, for messages.
        num_threads, rewritten: as for `OnnxRuntimeBackend`.

    Raises:
        BackendError: onnxruntime cannot load it.
    """
    with nullcontext(model) if isinstance(model, Path) else mapped_file(model) as path:
        backend = OnnxRuntimeBackend(path, precision=precision, num_threads=num_threads, rewritten=rewritten)
    try:
        yield backend
    finally:
        backend.close()
        if not isinstance(model, Path):
            return_memory(model)
