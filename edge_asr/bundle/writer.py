"""The files of a bundle folder: bundle.json and what other runtimes read beside the model.

sherpa-onnx reads tokens.txt and the metadata inside the ONNX file; onnx-asr reads vocab.txt and
config.json. Where the folder goes and when it appears is atomic.py's affair.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import edge_asr
from edge_asr.atomic import partial_folder, put_in_place, write_file
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import Artifact, BundleInfo, CpuGraph, LanguageModelFile, Precision
from edge_asr.bundle.names import (
    LANGUAGE_MODEL_NAME,
    MANIFEST_NAME,
    MODEL_FILES,
    ONNX_ASR_CONFIG_NAME,
    TOKENS_NAME,
    VOCAB_NAME,
)
from edge_asr.errors import BundleError
from edge_asr.feature_config import FeatureConfig
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

_SHARED_BYTES = 4096  # a smaller weight is not worth a look into another file


def onnx_metadata(
    name: str, features: FeatureConfig, vocabulary: Vocabulary, subsampling_factor: int
) -> dict[str, str]:
    """Metadata that sherpa-onnx reads from the graph (sherpa-onnx/csrc/offline-nemo-enc-dec-ctc-model.cc).

    `vocab_size` is without the blank; without it or `subsampling_factor` sherpa-onnx ends the process.
    """
    return {
        "vocab_size": str(len(vocabulary) - 1),
        "subsampling_factor": str(subsampling_factor),
        "normalize_type": "per_feature" if features.normalize == "per_feature" else "",
        "model_type": "EncDecCTCModelBPE",
        "version": "1",
        "model_author": "edge-asr",
        "url": "",
        "comment": f"{name}, exported by edge-asr {edge_asr.__version__}",
    }


def write_token_files(folder: Path, vocabulary: Vocabulary, n_mels: int, subsampling_factor: int) -> None:
    """Write tokens.txt, vocab.txt (the same lines) and onnx-asr's config.json."""
    lines = vocabulary.to_token_lines()
    (folder / TOKENS_NAME).write_text(lines, encoding="utf-8")
    (folder / VOCAB_NAME).write_text(lines, encoding="utf-8")
    config = {
        "model_type": "nemo-conformer-ctc",
        "features_size": n_mels,
        "subsampling_factor": subsampling_factor,
    }
    (folder / ONNX_ASR_CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_model(
    folder: Path,
    model: onnx.ModelProto,
    precision: Precision,
    weights: Literal["fp32", "fp16", "int8"],
    *,
    file: str | None = None,
    cpu_time_over_fp32: float | None = None,
) -> Artifact:
    """Write a model in one file, named after its precision unless `file` says otherwise, and describe it.

    Raises:
        BundleError: the model keeps weights in other files, which no hash would cover.
    """
    external = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    if external:
        raise BundleError(
            f"the {precision} model keeps {external[0]} and {len(external) - 1} more tensors in another file "
            "(ONNX external data); load them into the model before writing it"
        )
    path = folder / (MODEL_FILES[precision] if file is None else file)
    path.write_bytes(model.SerializeToString(deterministic=True))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return Artifact(
        file=path.name,
        precision=precision,
        weights=weights,
        sha256=sha256_of(path),
        opset=opset,
        ir_version=model.ir_version,
        size_bytes=path.stat().st_size,
        cpu_time_over_fp32=None if cpu_time_over_fp32 is None else round(cpu_time_over_fp32, 3),
    )


def write_cpu_graph(folder: Path, graph: onnx.ModelProto, artifact: Artifact, *, file: str) -> CpuGraph:
    """Write what `make_cpu_graph` made of an artifact with the onnxruntime that is installed; describe it.

    Its INT8 weights are the bytes that the artifact holds, so they stay there (as ONNX external data), which
    saves nine tenths of its size. `graph` is changed.
    """
    import onnx
    import onnxruntime

    content = (folder / artifact.file).read_bytes()
    for initializer in graph.graph.initializer:
        n_bytes = len(initializer.raw_data)
        narrow = initializer.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        offset = content.find(initializer.raw_data) if narrow and n_bytes >= _SHARED_BYTES else -1
        if offset < 0:
            continue
        initializer.ClearField("raw_data")
        initializer.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", artifact.file), ("offset", offset), ("length", n_bytes)):
            initializer.external_data.add(key=key, value=str(value))
    path = folder / file
    path.write_bytes(graph.SerializeToString(deterministic=True))
    return CpuGraph(
        file=path.name,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        onnxruntime=onnxruntime.__version__,
        weights_file=artifact.file,
    )


def write_manifest(folder: Path, info: BundleInfo) -> None:
    """Write bundle.json, with the hash of the folder's tokens.txt."""
    tokens_sha256 = sha256_of(folder / TOKENS_NAME)
    data: dict[str, Any] = dataclasses.replace(info, tokens_sha256=tokens_sha256).to_dict()
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(folder / MANIFEST_NAME, text)


def attach_language_model(
    bundle: Bundle, model: Path | None, weights: Mapping[str, float] | None = None
) -> None:
    """Put a language model into a bundle, in the place of the one it has; None takes that one out.

    Args:
        bundle: the bundle.
        model: file of the language model; may be the one in the bundle.
        weights: what tuning found for this bundle.

    Raises:
        OSError: the folder cannot be written; it is as it was.
    """
    with partial_folder(bundle.path) as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        entry = None
        if bundle.info.language_model is not None:
            (folder / bundle.info.language_model.file).unlink()
        if model is not None:
            path = Path(shutil.copyfile(model, folder / LANGUAGE_MODEL_NAME))
            entry = LanguageModelFile(
                file=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size, weights=weights
            )
        write_manifest(folder, dataclasses.replace(bundle.info, language_model=entry))
        put_in_place(folder, bundle.path)
