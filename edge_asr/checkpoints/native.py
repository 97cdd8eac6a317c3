"""Our own checkpoint: a folder of config.json, model.safetensors and, for SentencePiece, tokenizer.model.

It writes all of it or nothing, and reads it with every name, shape and setting checked, float16 as float32.
What this file does not do: hold optimizer state (`edge_asr.training`), read or write pickles.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edge_asr.errors import CheckpointError, ConfigError, VocabularyError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.config import ConformerConfig
from edge_asr.model.ctc import ConformerCTC
from edge_asr.vocabulary import Vocabulary

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.model"
_CONFIG_KEYS = {"format_version", "model", "features", "vocabulary", "provenance"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_EMBEDDED = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        model_config: shape of the network.
        state_dict: its tensors, floating ones as float32, exactly the names `ConformerCTC.state_dict` has.
        features: the front end it was trained with.
        vocabulary: its tokens, blank last.
        provenance: where the weights came from; free-form JSON.
        path: the folder it was read from.
        tokenizer_model: content of tokenizer.model, or None.
    """

    model_config: ConformerConfig
    state_dict: dict[str, Tensor]
    features: FeatureConfig
    vocabulary: Vocabulary
    provenance: dict[str, Any]
    path: Path
    tokenizer_model: bytes | None = None

    @property
    def source_blank_id(self) -> int:
        """The blank's place among the original's outputs; ours is always last."""
        return int(self.provenance.get("source_blank_id", self.vocabulary.blank_id))

    @property
    def notes(self) -> tuple[str, ...]:
        """What its loader assumed or left out, in sentences."""
        return tuple(self.provenance.get("notes", ()))

    @property
    def attention_contexts(self) -> tuple[tuple[int, int], ...]:
        """Every (left, right) context of its training, the configuration's first; none for full context."""
        contexts = self.provenance.get("attention_contexts") or [self.model_config.attention_context]
        return tuple((context[0], context[1]) for context in contexts if context and max(context) >= 0)

    @property
    def has_dynamic_chunks(self) -> bool:
        """Whether its loader knows that it was trained with chunks of many sizes."""
        return bool(self.provenance.get("dynamic_chunk", False))

    def build_model(self) -> ConformerCTC:
        """The network with a copy of these weights, on the CPU, in eval mode."""
        model = ConformerCTC(self.model_config)
        model.load_state_dict(self.state_dict, strict=True)
        return model.eval()


def resolve_path(path_or_name: str | Path) -> Path:
    """An existing path as it is; else the embedded model of that name, if there is one; else the path."""
    path = Path(path_or_name)
    if not path.exists() and len(path.parts) == 1:
        embedded = _EMBEDDED / path / "checkpoint"
        if embedded.is_dir():
            return embedded
    return path


def is_native(path_or_name: str | Path) -> bool:
    """Whether it looks like a native checkpoint: a folder with our two file names."""
    path = resolve_path(path_or_name)
    return (path / CONFIG_NAME).is_file() and (path / WEIGHTS_NAME).is_file()


def save_checkpoint(
    path: str | Path,
    model: ConformerCTC,
    features: FeatureConfig,
    vocabulary: Vocabulary,
    provenance: Mapping[str, Any],
    dtype: Literal["float32", "float16"] = "float32",
    tokenizer_model: bytes | None = None,
) -> Path:
    """Write a checkpoint folder: complete under a temporary name, then renamed into place.

    An older checkpoint at `path` is replaced; a folder holding anything else is left alone.

    Args:
        path: the folder to make; parents are created.
        dtype: storage of floating tensors.
        tokenizer_model: a SentencePiece model to keep beside the weights.

    Returns:
        The folder.

    Raises:
        CheckpointError: when `path` holds other files, the parts contradict each other, a weight is not
            finite (in `dtype`), or the provenance is not JSON.
    """
    target = Path(path)
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype must be float32 or float16, got {dtype!r}.")
    _check_target(target)
    check_agreement(model.config, features, vocabulary, target)
    tensors = {
        name: tensor.detach()
        .to("cpu", _DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype)
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"Tensor {name} is not finite as {dtype}; the model diverged, or needs float32."
            )
    config = {
        "format_version": FORMAT_VERSION,
        "model": model.config.to_dict(),
        "features": features.to_dict(),
        "vocabulary": vocabulary.to_dict(),
        "provenance": dict(provenance),
    }
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The provenance must be plain JSON values: {error}.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private
        (temporary / CONFIG_NAME).write_text(text, encoding="utf-8")
        (temporary / WEIGHTS_NAME).write_bytes(save(tensors))  # save_file would make it private
        if tokenizer_model is not None:
            (temporary / TOKENIZER_NAME).write_bytes(tokenizer_model)
        for file in temporary.iterdir():
            _flush_to_disk(file)
        if target.exists():
            # A folder cannot be renamed over a full one, so the old one steps aside first.
            aside = temporary.with_suffix(".old")
            os.replace(target, aside)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(aside, target)
                raise
            shutil.rmtree(aside)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Read a checkpoint folder, or an embedded one by name ("tiny-en").

    Raises:
        CheckpointError: for a missing or damaged file, an unknown format version or key, settings that
            contradict each other, or tensors that are missing, unexpected, of a wrong shape or type, or not
            finite.
    """
    path = resolve_path(path_or_name)
    if not path.is_dir():
        names = sorted(entry.parent.name for entry in _EMBEDDED.glob("*/checkpoint"))
        hint = f"; embedded models: {', '.join(names)}" if names else ""
        raise CheckpointError(f"{path_or_name} is not a checkpoint folder{hint}.")
    config = _read_config(path)
    try:
        model_config = ConformerConfig.from_dict(config["model"])
        features = FeatureConfig.from_dict(config["features"])
        vocabulary = Vocabulary.from_dict(config["vocabulary"])
    except (ConfigError, VocabularyError) as error:
        raise CheckpointError(f"{path / CONFIG_NAME}: {error}") from error
    check_agreement(model_config, features, vocabulary, path)
    tokenizer = path / TOKENIZER_NAME
    return Checkpoint(
        model_config=model_config,
        state_dict=_read_tensors(path / WEIGHTS_NAME, model_config),
        features=features,
        vocabulary=vocabulary,
        provenance=config["provenance"],
        path=path,
        tokenizer_model=tokenizer.read_bytes() if tokenizer.is_file() else None,
    )


def _check_target(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; give the name of a folder.")
    others = sorted({entry.name for entry in target.iterdir()} - {CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME})
    if others:
        raise CheckpointError(
            f"{target} holds files that are no checkpoint ({others[0]}); choose another folder."
        )


def check_agreement(
    model: ConformerConfig, features: FeatureConfig, vocabulary: Vocabulary, where: Path
) -> None:
    """Refuse a front end or vocabulary of another size than the model's.

    Raises:
        CheckpointError: it names both numbers.
    """
    if model.n_mels != features.n_mels:
        raise CheckpointError(
            f"{where}: the model takes {model.n_mels} mel bands, the features give {features.n_mels}."
        )
    if model.vocab_size != len(vocabulary.tokens):
        raise CheckpointError(
            f"{where}: the model has {model.vocab_size} outputs, the vocabulary "
            f"{len(vocabulary.tokens)} tokens (blank included)."
        )
    if vocabulary.blank_id != model.blank_id:
        raise CheckpointError(
            f"{where}: the blank is token {vocabulary.blank_id}; our models have it last ({model.blank_id})."
        )


def _flush_to_disk(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_NAME
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; {path} is no edge-asr checkpoint.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(config).__name__}.")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format_version is {version!r}, this edge-asr reads {FORMAT_VERSION}; "
            "use the matching release."
        )
    for word, keys in (
        ("lacks", _CONFIG_KEYS - set(config)),
        ("has the unknown key", set(config) - _CONFIG_KEYS),
    ):
        if keys:
            raise CheckpointError(f"{file} {word} {', '.join(repr(key) for key in sorted(keys))}.")
    for key in sorted(_CONFIG_KEYS - {"format_version"}):
        if not isinstance(config[key], dict):
            raise CheckpointError(f"{file}: {key!r} must be an object, got {type(config[key]).__name__}.")
    return config


def _read_tensors(file: Path, config: ConformerConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = ConformerCTC(config).state_dict()
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; the checkpoint is incomplete.")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            names = set(handle.keys())
            problems = [f"missing {name}" for name in expected if name not in names]
            problems += [f"unexpected {name}" for name in sorted(names - set(expected))]
            for name, like in expected.items():
                if name not in names:
                    continue
                shape = tuple(handle.get_slice(name).get_shape())
                if shape != tuple(like.shape):
                    problems.append(f"{name} has shape {shape}, the configuration says {tuple(like.shape)}")
            if problems:
                more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
                raise CheckpointError(
                    f"{file} does not fit its {CONFIG_NAME}: {'; '.join(problems[:5])}{more}; "
                    "use the two files of one checkpoint."
                )
            for name, like in expected.items():
                tensors[name] = _checked_tensor(handle.get_tensor(name), name, like, file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}.") from error
    return tensors


def _checked_tensor(tensor: Tensor, name: str, like: Tensor, file: Path) -> Tensor:
    if not like.is_floating_point():
        if tensor.dtype != like.dtype:
            raise CheckpointError(f"{file}: {name} is {tensor.dtype}, expected {like.dtype}.")
        return tensor
    if tensor.dtype not in _DTYPES.values():
        raise CheckpointError(f"{file}: {name} is {tensor.dtype}, expected float32 or float16.")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{file}: {name} holds values that are not finite; the file is damaged.")
    return tensor.to(torch.float32)
