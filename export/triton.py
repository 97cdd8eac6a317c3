"""Writes a model repository for NVIDIA's Triton Inference Server from a bundle.

    DIR/NAME/                 sound to text: the Python backend, over edge_asr.integrations.triton
    DIR/NAME_fp32/ ...        the offline graphs, for Triton's ONNX Runtime
    DIR/NAME_tensorrt_fp16/   the engines of the bundle, if `edge-asr build` made any, by their GPUs
    DIR/NAME_stream_int8/ ... a step of a stream; Triton keeps the caches (implicit state)

Every model has a config.pbtxt with a version policy, warm-up and batching. Triton wants a dimension beside
that of the batch where a graph has a number for each row: `length` is reshaped, and the number in the state
of a stream gets its second dimension in a copy of the graph.
What this file does not do: recognize; run Triton. Tests parse the configurations with Triton's own messages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge_asr.atomic import FolderKind, replacing_folder
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import PRECISIONS, Artifact
from edge_asr.bundle.names import ENGINES_FOLDER, INPUT_NAMES, OUTPUT_NAME, STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.errors import ConfigError
from edge_asr.runtime.engine.lookup import list_engines
from edge_asr.runtime.engine.sidecar import EngineSidecar

REPOSITORY = FolderKind("Triton model repository of edge-asr", "edge-asr-triton.json", ConfigError)
DEFAULT_BATCHES = (4, 8)
"""Preferred rows where no benchmark was given."""
MAX_BATCH = 16
"""Most rows of the Python model, and of graphs whose preferred ones are fewer."""
MAX_SEQUENCES = 64
_DELAY_US = {"text": 5_000, "model": 2_000, "stream": 2_000}
_IDLE_US = 30_000_000
_WARM_UP_S = 5
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}
_MODEL_PY = '''"""Sound to text, by edge-asr, which has to be installed where Triton's Python backend runs."""

from edge_asr.integrations.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class Word(str):
    """A word of a protobuf text file that has no quotes: an enum."""


def format_pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """Format a message as protobuf text; a list is a repeated field, None is left out."""
    lines: list[str] = []
    for name, value in message.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Mapping):
                lines += [f"{indent}{name} {{", format_pbtxt(one, indent + "  "), f"{indent}}}"]
            elif one is not None:
                quoted = json.dumps(one) if isinstance(one, str) and not isinstance(one, Word) else one
                text = str(one).lower() if isinstance(one, bool) else quoted
                lines.append(f"{indent}{name}: {text}")
    return "\n".join(line for line in lines if line)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One model of the repository.

    Attributes:
        name: its folder.
        files: content of its version folder, by name: bytes, or a file to take.
        config: config.pbtxt.
        warm_up: files of its warm-up.
        asked: what the model of the text has to know, to ask this one for log-probs; None if it cannot.
    """

    name: str
    files: Mapping[str, bytes | Path]
    config: Mapping[str, Any]
    warm_up: Mapping[str, bytes]
    asked: Mapping[str, Any] | None = None


def write_triton_repository(
    bundle: Bundle,
    target: Path,
    *,
    batches: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
) -> list[str]:
    """Write the repository, all at once; return the names of its models, that of the text first.

    Args:
        bundle: what to serve; the repository holds a copy (hard links where the file system has them).
        target: folder to make.
        batches: preferred rows by precision, as a benchmark of the bundle found them.
        force: replace an earlier repository.

    Raises:
        ConfigError: the folder exists, or is something else.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", bundle.info.name)
    models = list(_graph_models(bundle, name, batches or {}))
    models.insert(0, _text_model(bundle, name, models))
    with replacing_folder(target, REPOSITORY, force=force) as folder:
        for model in models:
            version = folder / model.name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(format_pbtxt(model.config) + "\n", encoding="utf-8")
            for file, content in model.files.items():
                _put(version / file, content)
            for file, data in model.warm_up.items():
                _put(version.parent / "warmup" / file, data)
        _put_bundle(bundle, folder / name / "1" / "bundle")
        facts = {"bundle": bundle.info.name, "models": [model.name for model in models]}
        (folder / REPOSITORY.marker).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return [model.name for model in models]


def _put(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    try:
        os.link(content.resolve(), path)
    except OSError:
        shutil.copyfile(content, path)


def _put_bundle(bundle: Bundle, target: Path) -> None:
    for path in sorted(bundle.path.rglob("*")):
        inside = path.relative_to(bundle.path)
        if path.is_file() and inside.parts[0] != ENGINES_FOLDER:
            _put(target / inside, path)


def _text_model(bundle: Bundle, name: str, models: Sequence[TritonModel]) -> TritonModel:
    """Return the model that hears: by the engines if there are any, else by the fp32 graph."""
    offline = [model for model in models if model.asked is not None]
    chosen = next((model for model in offline if model.config["backend"] == "tensorrt"), offline[0])
    settings = {"model": chosen.name, "decoder": "greedy", **(chosen.asked or {})}
    settings["max_batch"] = chosen.config["max_batch_size"]
    one: dict[str, Any] = {"dims": [1], "optional": True}
    rate = bundle.info.features.sample_rate
    return TritonModel(
        name=name,
        files={"model.py": _MODEL_PY.encode()},
        config={
            **_common(name, "python", MAX_BATCH),
            "input": [
                {"name": "AUDIO", "data_type": Word("TYPE_FP32"), "dims": [-1]},
                {"name": "AUDIO_LENGTH", "data_type": Word("TYPE_INT32"), **one},
                {"name": "SAMPLE_RATE", "data_type": Word("TYPE_INT32"), **one},
            ],
            "output": [
                {"name": "TEXT", "data_type": Word("TYPE_STRING"), "dims": [1]},
                {"name": "CONFIDENCE", "data_type": Word("TYPE_FP32"), "dims": [1]},
                {"name": "JSON", "data_type": Word("TYPE_STRING"), "dims": [1]},
            ],
            "dynamic_batching": {"max_queue_delay_microseconds": _DELAY_US["text"]},
            "instance_group": {"count": 1, "kind": Word("KIND_CPU")},
            "parameters": [
                {"key": key, "value": {"string_value": str(value)}} for key, value in settings.items()
            ],
            "model_warmup": {
                "name": "silence",
                "batch_size": 1,
                "inputs": [_warm_input("AUDIO", "TYPE_FP32", [_WARM_UP_S * rate])],
            },
        },
        warm_up={},
    )


def _graph_models(bundle: Bundle, name: str, batches: Mapping[str, Sequence[int]]) -> Iterator[TritonModel]:
    for artifact in sorted(bundle.info.artifacts, key=lambda a: PRECISIONS.index(a.precision)):
        rows = sorted(set(batches.get(artifact.precision, DEFAULT_BATCHES)))
        config = {
            **_common(f"{name}_{artifact.precision}", "onnxruntime", max(MAX_BATCH, *rows)),
            **_offline_tensors(bundle, "int64"),
            "dynamic_batching": _batching(rows, "model"),
            "instance_group": {"count": 1, "kind": Word("KIND_AUTO")},
        }
        files: dict[str, bytes | Path] = {"model.onnx": bundle.path / artifact.file}
        yield _warmed(bundle, config, files, asked={"precision": artifact.precision})
    yield from _engine_models(bundle, name, batches)
    for artifact in () if bundle.info.streaming is None else bundle.info.streaming.artifacts:
        yield _stream_model(bundle, name, artifact, batches)


def _common(name: str, backend: str, max_batch: int) -> dict[str, Any]:
    return {
        "name": name,
        "backend": backend,
        "max_batch_size": max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
    }


def _batching(rows: Sequence[int], kind: str) -> dict[str, Any]:
    return {"preferred_batch_size": list(rows), "max_queue_delay_microseconds": _DELAY_US[kind]}


def _number(name: str, dtype: str) -> dict[str, Any]:
    """Describe a tensor of the shape [B], which Triton's clients give as [B, 1]."""
    return {"name": name, "data_type": Word(_TYPES[dtype]), "dims": [1], "reshape": {"shape": []}}


def _tensor(name: str, dims: Sequence[int], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "data_type": Word(_TYPES[dtype]), "dims": list(dims)}


def _offline_tensors(bundle: Bundle, length_type: str, float_type: str = "float32") -> dict[str, Any]:
    features, length = INPUT_NAMES
    return {
        "input": [
            _tensor(features, [bundle.info.features.n_mels, -1], float_type),
            _number(length, length_type),
        ],
        "output": [_tensor(OUTPUT_NAME, [-1, bundle.info.vocabulary_size], float_type)],
    }


def _warm_input(name: str, data_type: str, dims: Sequence[int], file: str | None = None) -> dict[str, Any]:
    source = {"zero_data": True} if file is None else {"input_data_file": file}
    return {"key": name, "value": {"data_type": Word(data_type), "dims": list(dims), **source}}


def _warmed(
    bundle: Bundle,
    config: dict[str, Any],
    files: Mapping[str, bytes | Path],
    *,
    length_type: str = "int64",
    n_frames: int | None = None,
    asked: Mapping[str, Any] | None = None,
) -> TritonModel:
    """Add a warm-up of `n_frames`, or 5 s; its `length` is a file, because Triton has no constants."""
    features, length = config["input"]
    spec = bundle.info.features
    frames = n_frames or _WARM_UP_S * spec.sample_rate // spec.hop_length
    inputs = [
        _warm_input(features["name"], features["data_type"], [spec.n_mels, frames]),
        _warm_input(length["name"], length["data_type"], [1], "length"),
    ]
    config["model_warmup"] = {"name": "silence", "batch_size": 1, "inputs": inputs}
    data = np.array([frames], np.dtype(length_type).newbyteorder("<")).tobytes()
    return TritonModel(name=config["name"], files=files, config=config, warm_up={"length": data}, asked=asked)


def _engine_models(bundle: Bundle, name: str, batches: Mapping[str, Sequence[int]]) -> Iterator[TritonModel]:
    """One model for each precision; where engines are for several GPUs, Triton takes the one that fits."""
    for precision in PRECISIONS:
        newest: dict[str, tuple[Path, EngineSidecar]] = {}
        for path, sidecar in list_engines(bundle, "tensorrt", precision):
            capability = sidecar.device.compute_capability or ""
            if capability not in newest or newest[capability][1].built_at < sidecar.built_at:
                newest[capability] = (path, sidecar)
        if not newest:
            continue
        sidecars = [sidecar for _, sidecar in newest.values()]
        types = {tensor.name: tensor.dtype for tensor in sidecars[0].tensors}
        float_type, length_type = (types[name] for name in INPUT_NAMES)
        most = min(max(profile.max_batch for profile in sidecar.profiles) for sidecar in sidecars)
        asked = {
            "precision": precision,
            "float_type": float_type,
            "length_type": length_type,
            "min_frames": max(min(profile.min_frames for profile in s.profiles) for s in sidecars),
            "max_frames": min(max(profile.max_frames for profile in s.profiles) for s in sidecars),
        }
        rows = [row for row in sorted(set(batches.get(precision, DEFAULT_BATCHES))) if row <= most]
        names = {capability: f"model.sm{capability.replace('.', '')}.plan" for capability in newest}
        config = {
            **_common(f"{name}_tensorrt_{precision}", "tensorrt", most),
            **_offline_tensors(bundle, length_type, float_type),
            "default_model_filename": names[max(newest, key=lambda c: newest[c][1].built_at)],
            "cc_model_filenames": [{"key": c, "value": file} for c, file in names.items()],
            "dynamic_batching": _batching(rows, "model"),
            "instance_group": {
                "count": 1,
                "kind": Word("KIND_GPU"),
                "profile": [str(number) for number in range(min(len(s.profiles) for s in sidecars))],
            },
        }
        plans: dict[str, bytes | Path] = {names[c]: path for c, (path, _) in newest.items()}
        n_frames = sidecars[0].profiles[0].opt_frames
        yield _warmed(bundle, config, plans, length_type=length_type, n_frames=n_frames, asked=asked)


def _stream_model(
    bundle: Bundle, name: str, artifact: Artifact, batches: Mapping[str, Sequence[int]]
) -> TritonModel:
    geometry = bundle.streaming.geometry
    features, length, *caches = STREAM_INPUTS
    log_probs, n_valid, *following = STREAM_OUTPUTS
    shapes = (geometry.cache_last_channel, geometry.cache_last_time, (1,))
    states = [
        {
            "input_name": cache,
            "output_name": after,
            "data_type": Word(dtype),
            "dims": list(shape),
            "initial_state": {
                "name": "new",
                "data_type": Word(dtype),
                "dims": list(shape),
                "zero_data": True,
            },
        }
        for cache, after, shape, dtype in zip(
            caches, following, shapes, ("TYPE_FP32", "TYPE_FP32", "TYPE_INT64"), strict=True
        )
    ]
    rows = sorted(set(batches.get("stream", DEFAULT_BATCHES)))
    config = {
        **_common(f"{name}_stream_{artifact.precision}", "onnxruntime", max(MAX_BATCH, *rows)),
        "input": [_tensor(features, [bundle.info.features.n_mels, -1]), _number(length, "int64")],
        "output": [
            _tensor(log_probs, [geometry.chunk_frames, bundle.info.vocabulary_size]),
            _number(n_valid, "int64"),
        ],
        "sequence_batching": {
            "max_sequence_idle_microseconds": _IDLE_US,
            "oldest": {"max_candidate_sequences": MAX_SEQUENCES, **_batching(rows, "stream")},
            "state": states,
        },
        "instance_group": {"count": 1, "kind": Word("KIND_AUTO")},
    }
    graph = _with_a_column(bundle.path / artifact.file, caches[-1], following[-1])
    return _warmed(bundle, config, {"model.onnx": graph}, n_frames=geometry.first_window_frames)


def _with_a_column(path: Path, state: str, following: str) -> bytes:
    """Return a graph whose state of one number a row, [B], is [B, 1]: Triton has no reshape for a state."""
    model = onnx.load(str(path))
    graph = model.graph
    flat = {state: f"{state}_flat", following: f"{following}_flat"}
    for node in graph.node:
        node.input[:] = [flat.get(name, name) for name in node.input]
        node.output[:] = [flat.get(name, name) for name in node.output]
    axes = f"{state}_axes"
    graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [1], [1]))
    graph.node.insert(0, helper.make_node("Squeeze", [state, axes], [flat[state]]))
    graph.node.append(helper.make_node("Unsqueeze", [flat[following], axes], [following]))
    for value in (*graph.input, *graph.output):
        if value.name in flat:
            value.type.tensor_type.shape.dim.add().dim_value = 1
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
