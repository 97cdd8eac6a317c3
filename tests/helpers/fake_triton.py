"""A stand-in for a Triton server: models of a repository, run by onnxruntime, and `pb_utils` for model.py.

It parses config.pbtxt with Triton's own messages (of tritonclient) and refuses what Triton would: another
type or shape than the configuration says, too many rows, an unknown name. It keeps the state of sequences. It
neither batches nor places models, and runs TensorRT models by the ONNX file that they were made from.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from google.protobuf import json_format, text_format

Array = npt.NDArray[Any]
DTYPES = {
    "TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32,
    "TYPE_STRING": np.object_,
}  # fmt: skip


def load_messages(tritonclient: Path) -> ModuleType:
    """Import the messages of config.pbtxt alone; the rest of the package wants more than the tests have."""
    path = tritonclient / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were made for the protobuf before
        spec.loader.exec_module(module)
    return module


class Tensor:
    """`pb_utils.Tensor`."""

    def __init__(self, name: str, array: Array) -> None:
        self.tensor_name, self.array = name, array

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> Array:
        return self.array


@dataclass
class Response:
    """`pb_utils.InferenceResponse`."""

    output_tensors: Sequence[Tensor] = ()
    error_: Any = None

    def has_error(self) -> bool:
        return self.error_ is not None

    def error(self) -> Any:
        return self.error_


@dataclass
class FakeTriton:
    """The models of a repository.

    Attributes:
        asked: each request that a model got: its name and the shapes of its inputs.
    """

    folder: Path
    messages: ModuleType
    graphs: Mapping[str, Path] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)
    fails: bool = False

    def __post_init__(self) -> None:
        self.configs = {path.parent.name: self._parse(path) for path in self.folder.glob("*/config.pbtxt")}
        self._sessions: dict[str, Any] = {}
        self._states: dict[tuple[str, int], dict[str, Array]] = {}

    def _parse(self, path: Path) -> Any:
        return text_format.Parse(path.read_text(), self.messages.ModelConfig())

    def session(self, name: str) -> Any:
        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            path = self.graphs.get(name, self.folder / name / "1" / "model.onnx")
            self._sessions[name] = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[name]

    def infer(
        self, name: str, inputs: Mapping[str, Array], *, sequence: int = 0, start: bool = False
    ) -> dict[str, Array]:
        """Run a model as a client asks for it: outputs by name."""
        config = self.configs[name]
        self.asked.append((name, {key: array.shape for key, array in inputs.items()}))
        assert set(inputs) == {one.name for one in config.input}, "all inputs, and no others"
        feeds = {
            one.name: self._to_graph(one, inputs[one.name], config.max_batch_size) for one in config.input
        }
        n_rows = len(next(iter(inputs.values())))
        assert all(len(array) == n_rows for array in inputs.values())
        states = config.sequence_batching.state
        if states:
            if start:
                initial = {
                    s.input_name: np.zeros((n_rows, *s.dims), DTYPES[self._type(s.data_type)]) for s in states
                }
                assert all(s.initial_state[0].zero_data and s.initial_state[0].dims == s.dims for s in states)
                self._states[name, sequence] = initial
            feeds |= self._states[name, sequence]
        names = [one.name for one in (*config.output,)] + [s.output_name for s in states]
        values = dict(zip(names, self.session(name).run(names, feeds), strict=True))
        if states:
            for state in states:
                assert values[state.output_name].shape[1:] == tuple(state.dims)
            self._states[name, sequence] = {s.input_name: values[s.output_name] for s in states}
        return {one.name: self._to_client(one, values[one.name]) for one in config.output}

    def _type(self, number: int) -> str:
        return str(self.messages.DataType.Name(number))

    def _to_graph(self, spec: Any, array: Array, max_batch: int) -> Array:
        assert array.dtype == DTYPES[self._type(spec.data_type)], spec.name
        assert 1 <= len(array) <= max_batch, f"{len(array)} rows"
        self._check(spec, array)
        return array.reshape(len(array), *spec.reshape.shape) if spec.HasField("reshape") else array

    def _to_client(self, spec: Any, array: Array) -> Array:
        assert array.dtype == DTYPES[self._type(spec.data_type)], spec.name
        if spec.HasField("reshape"):
            array = array.reshape(len(array), *spec.dims)
        self._check(spec, array)
        return array

    @staticmethod
    def _check(spec: Any, array: Array) -> None:
        shape, dims = array.shape[1:], tuple(spec.dims)
        assert len(shape) == len(dims), f"{spec.name} {array.shape} is not [rows, {dims}]"
        assert all(d in (-1, s) for d, s in zip(dims, shape, strict=True)), (
            f"{spec.name} {array.shape} is not [rows, {dims}]"
        )

    def pb_utils(self) -> Any:
        """Return what stands in for `triton_python_backend_utils`."""
        server = self

        class InferenceRequest:
            def __init__(
                self,
                *,
                model_name: str,
                requested_output_names: Sequence[str],
                inputs: Sequence[Tensor],
                preferred_memory: Any,
            ) -> None:
                assert preferred_memory == "cpu memory"
                self.model, self.wanted, self.tensors = model_name, requested_output_names, inputs

            def exec(self) -> Response:
                if server.fails:
                    return Response(error_=SimpleNamespace(message=lambda: "no memory"))
                outputs = server.infer(self.model, {t.name(): t.as_numpy() for t in self.tensors})
                return Response([Tensor(name, outputs[name]) for name in self.wanted])

        def find(tensors: Sequence[Tensor], name: str) -> Tensor | None:
            return next((tensor for tensor in tensors if tensor.name() == name), None)

        return SimpleNamespace(
            Tensor=Tensor,
            InferenceRequest=InferenceRequest,
            InferenceResponse=lambda output_tensors=(), error=None: Response(output_tensors, error),
            TritonError=lambda message: SimpleNamespace(message=lambda: message),
            PreferredMemory=lambda where: f"{where} memory",
            TRITONSERVER_MEMORY_CPU="cpu",
            get_input_tensor_by_name=lambda request, name: find(request, name),
            get_output_tensor_by_name=lambda response, name: find(response.output_tensors, name),
        )

    def arguments(self, name: str) -> dict[str, str]:
        """Return what Triton gives `initialize`."""
        config = json_format.MessageToDict(self.configs[name], preserving_proto_field_name=True)
        return {
            "model_config": json.dumps(config),
            "model_repository": str(self.folder / name),
            "model_version": "1",
            "model_name": name,
        }

    def execute(self, model: Any, name: str, requests: Sequence[Mapping[str, Array]]) -> list[Any]:
        """Run a Python model with requests that its configuration allows; return outputs, or the error."""
        config = self.configs[name]
        specs = {one.name: one for one in config.input}
        for request in requests:
            optional = {one.name for one in config.input if one.optional}
            assert set(specs) - optional <= set(request) <= set(specs)
            for key, array in request.items():
                self._to_graph(specs[key], array, config.max_batch_size)
        responses = model.execute([[Tensor(key, array) for key, array in r.items()] for r in requests])
        assert len(responses) == len(requests)
        found: list[Any] = []
        for response in responses:
            if response.has_error():
                found.append(response.error().message())
                continue
            values = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}
            found.append({one.name: self._to_client(one, values[one.name]) for one in config.output})
        return found
