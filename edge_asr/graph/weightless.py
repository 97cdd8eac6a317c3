"""A graph without its large weights, for tools that copy whatever they are given.

onnxsim, the checker and shape inference serialize a graph several times; for a model of a hundred million
parameters that is gigabytes of weights that they never use. In the bare graph the weights are inputs of known
shape. They are only transposed, which the exporter leaves undone for large ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

_LARGE_ELEMENTS = 16384
_WEIGHTS_NAME = "weights.bin"
_MAPPED_BYTES = 16384  # from this size on
_PAGE_BYTES = 4096
_WORTHWHILE_ELEMENTS = 25_000_000


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the bare graph: an initializer of the whole one, transposed by `axes` unless None."""

    initializer: onnx.TensorProto
    axes: tuple[int, ...] | None = None

    def array(self) -> npt.NDArray[np.generic]:
        """Return its values, in the order that the bare graph needs."""
        from onnx import numpy_helper

        values: npt.NDArray[np.generic] = numpy_helper.to_array(self.initializer)
        return values if self.axes is None else np.ascontiguousarray(np.transpose(values, self.axes))


def split_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Weight]]:
    """Return the graph without its large weights, which become its last inputs, and these weights by name.

    `model` is unchanged, and must live as long as the weights are used. (Removing them from it would free
    nothing, because protobuf keeps the memory of a message together.)
    """
    import onnx

    large = {i.name: i for i in model.graph.initializer if np.prod(i.dims) >= _LARGE_ELEMENTS}
    transposed: dict[str, Weight] = {}
    bare = onnx.ModelProto()
    _copy_fields(model, bare, but=("graph",))
    graph = bare.graph
    graph.name = model.graph.name
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in large:
            rank = len(large[node.input[0]].dims)
            axes = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), tuple(range(rank))[::-1])
            transposed[node.output[0]] = Weight(large[node.input[0]], axes)
        else:
            graph.node.add().CopyFrom(node)
    graph.initializer.extend(i for i in model.graph.initializer if i.name not in large)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(value for value in model.graph.value_info if value.name not in transposed)
    read = {name for node in graph.node for name in node.input}
    weights = {name: Weight(initializer) for name, initializer in large.items() if name in read} | transposed
    graph.input.extend(model.graph.input)
    for name, weight in weights.items():
        dims = np.asarray(weight.initializer.dims)
        shape = dims.tolist() if weight.axes is None else dims[list(weight.axes)].tolist()
        graph.input.append(onnx.helper.make_tensor_value_info(name, weight.initializer.data_type, shape))
    return bare, weights


def join_weights(bare: onnx.ModelProto, weights: dict[str, Weight]) -> None:
    """Make the weights initializers of a bare graph, in place; those that no node reads are dropped."""
    import onnx

    own = onnx.GraphProto()
    own.input.extend(value for value in bare.graph.input if value.name not in weights)
    del bare.graph.input[:]
    bare.graph.input.extend(own.input)
    read = {name for node in bare.graph.node for name in node.input}
    for name, weight in weights.items():
        if name not in read:
            continue
        initializer = bare.graph.initializer.add()
        if weight.axes is None:
            initializer.CopyFrom(weight.initializer)
        else:
            initializer.CopyFrom(onnx.numpy_helper.from_array(weight.array(), name))


@contextlib.contextmanager
def mapped_file(model: onnx.ModelProto, *, outputs: Sequence[str] = ()) -> Iterator[Path]:
    """Write the graph to a file to open a session from; large weights are mapped from another file.

    For a graph in one file onnxruntime holds the bytes, the message read from them and the tensors at once,
    and writing it costs another copy here. With mapped weights the tensors alone take memory. An open session
    no longer needs the files.

    Args:
        model: the graph with its weights inside; it does not change.
        outputs: tensors that become outputs of the graph besides its own.
    """
    with tempfile.TemporaryDirectory(prefix="edge-asr-", ignore_cleanup_errors=True) as folder:
        path = _write_mapped(model, Path(folder), outputs)
        del model  # only the caller may still need it
        yield path


def _write_mapped(model: onnx.ModelProto, folder: Path, outputs: Sequence[str]) -> Path:
    import onnx

    bare = onnx.ModelProto()
    _copy_fields(model, bare, but=("graph",))
    _copy_fields(model.graph, bare.graph, but=("initializer",))
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


def _copy_fields(source: Any, target: Any, *, but: Collection[str]) -> None:
    """Copy all fields except `but` into an empty message of the same type."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def compacted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy `model` without the memory of removed parts, which a message keeps while it lives."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def return_memory(model: onnx.ModelProto) -> None:
    """Return freed memory to the system: glibc would keep it, and the next stage needs it elsewhere.

    Args:
        model: the graph that was worked on. Nothing is done for a small one, because the search takes longer
            than the work.
    """
    if sum(int(np.prod(i.dims)) for i in model.graph.initializer) < _WORTHWHILE_ELEMENTS:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
