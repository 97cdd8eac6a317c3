"""A graph as a file whose large weights are mapped from another: the one owner of files, and of freed memory.

Of a graph in one file onnxruntime holds the bytes, the message read from them and the tensors at once, and
writing it as one is a copy more here. This way the tensors alone take memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_asr.graph.weightless import copy_fields

if TYPE_CHECKING:
    from types import TracebackType

    import onnx

_WEIGHTS_NAME = "weights.bin"
_MAPPED_BYTES = 16384  # from this size on
_PAGE_BYTES = 4096
_WORTHWHILE_ELEMENTS = 25_000_000


class MappedGraph:
    """A graph in files of its own, which sessions are opened from (`session.py`) until it is closed.

    It keeps no reference to the model: one that nothing else holds is freed once it is written. Memory goes
    back to the system before each session and at the end. An open session needs the files no longer.

    Args:
        model: with its weights inside; it stays as it is.
        outputs: tensors that become outputs of the graph besides its own.

    Attributes:
        path: the graph's file.
        size_bytes: size of the graph with its weights.
    """

    def __init__(self, model: onnx.ModelProto, *, outputs: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-asr-", ignore_cleanup_errors=True)
        self.size_bytes = model.ByteSize()
        n_elements = sum(int(np.prod(i.dims)) for i in model.graph.initializer)
        self._is_large = n_elements >= _WORTHWHILE_ELEMENTS
        self.path = _write(model, Path(self._folder.name), outputs)

    def __enter__(self) -> MappedGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete the files and give back what was freed; a second call does nothing more."""
        self._folder.cleanup()
        self.return_memory()

    def return_memory(self) -> None:
        """Return freed memory to the system: glibc would keep it, and the next stage needs it elsewhere.

        Nothing is done for a small graph, because the search takes longer than the work.
        """
        if not self._is_large:
            return
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _write(model: onnx.ModelProto, folder: Path, outputs: Sequence[str]) -> Path:
    import onnx

    bare = onnx.ModelProto()
    copy_fields(model, bare, but=("graph",))
    copy_fields(model.graph, bare.graph, but=("initializer",))
    known = {value.name for value in bare.graph.output}
    bare.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in outputs if name not in known
    )
    with open(folder / _WEIGHTS_NAME, "wb") as file:
        for initializer in model.graph.initializer:
            n_bytes = len(initializer.raw_data)
            if n_bytes < _MAPPED_BYTES:
                bare.graph.initializer.add().CopyFrom(initializer)
                continue
            outside = bare.graph.initializer.add(
                name=initializer.name,
                data_type=initializer.data_type,
                dims=initializer.dims,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            entries = {"location": _WEIGHTS_NAME, "offset": file.tell(), "length": n_bytes}
            for key, value in entries.items():
                outside.external_data.add(key=key, value=str(value))
            file.write(initializer.raw_data)
            file.write(bytes(-n_bytes % _PAGE_BYTES))
    path = folder / "model.onnx"
    path.write_bytes(bare.SerializeToString())
    return path
