"""The config.json of our own checkpoint, and the facts about its origin; needs no torch.

It says whether a folder is ours, and reads its config.json with every key, type and setting checked.
What this file does not do: read weights (`native.py`), find embedded models (`edge_asr.bundle.folder`).

Format version 1. `facts` is written where a fact is known. Older files have none, and may hold the same
things under other names in `provenance`, which is otherwise for people only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_asr.bundle.folder import find_embedded
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.config import ConformerConfig, ContextStyle
from edge_asr.records import check_fields, json_from_record, read_json, record_from_json
from edge_asr.vocabulary import Vocabulary

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
TOKENIZER_NAME = "tokenizer.model"
_REMEDY = "use the edge-asr that wrote it, or copy the checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Facts of the original besides its network, which export and comparison follow.

    Attributes:
        source_blank_id: the blank's place among the original's outputs; None where it is ours, the last.
        attention_contexts: every [left, right] context of its training in encoder frames, -1 unlimited, the
            default first; empty where there was one, that of the network's configuration.
        attention_context_style: how these limit attention; None where the configuration says it.
        dynamic_chunks: it was trained with chunks of many sizes.
        notes: what its loader assumed or left out, in sentences.
        ctc_weight: share of CTC beside an attention decoder in the score of a text, 0 to 1, where the
            original says it.
        reverse_weight: share of a decoder from right to left in the decoders' score, likewise.

    Raises:
        CheckpointError: a value of a wrong type.
    """

    source_blank_id: int | None = None
    attention_contexts: tuple[tuple[int, int], ...] = ()
    attention_context_style: ContextStyle | None = None
    dynamic_chunks: bool = False
    notes: tuple[str, ...] = ()
    ctc_weight: float | None = None
    reverse_weight: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "the facts of the checkpoint", error=CheckpointError)


#: The facts as versions without `facts` had them in `provenance`.
_OLD_NAMES = {
    "source_blank_id": "source_blank_id",
    "attention_contexts": "attention_contexts",
    "attention_context_style": "attention_context_style",
    "dynamic_chunk": "dynamic_chunks",
    "notes": "notes",
}
NO_FACTS = SourceFacts()
#: Keys of the model that older versions do not know, left out where they change nothing.
_NEWER = {"decoder": None, "right_decoder": None, "encoder": "conformer", "taylor_terms": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeConfig:
    """Content of config.json.

    Attributes:
        model, features, vocabulary: the network, its front end and its tokens.
        provenance: where the weights came from; free-form, for people.
        facts: about the origin.
    """

    model: ConformerConfig
    features: FeatureConfig
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    facts: SourceFacts = field(default=NO_FACTS)
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON form; without what is not there, so that older versions read it too."""
        data: dict[str, Any] = {"format_version": self.format_version, **json_from_record(self)}
        if self.facts == NO_FACTS:
            del data["facts"]
        for name in ("ctc_weight", "reverse_weight"):
            if getattr(self.facts, name) is None and "facts" in data:
                del data["facts"][name]
        for name, default in _NEWER.items():
            if data["model"][name] == default:
                del data["model"][name]
        return data


def is_native(path: Path) -> bool:
    """Tell whether it is our folder, whole or not; a Hugging Face folder has files of the same names."""
    try:
        config = read_json(path / CONFIG_NAME, error=CheckpointError)
    except (OSError, CheckpointError):
        config = None  # `read_config` says what is wrong with it
    if isinstance(config, dict) and ("format_version" in config or "architectures" in config):
        return "format_version" in config
    return (path / WEIGHTS_NAME).is_file()


def read_config(folder: Path) -> NativeConfig:
    """Read and check a folder's config.json.

    Raises:
        CheckpointError: missing, damaged or too large, an unknown format version or key, a wrong type, or
            settings that contradict each other.
    """
    file = folder / CONFIG_NAME
    try:
        data = read_json(file, error=CheckpointError, remedy=_REMEDY)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; {folder} is no edge-asr checkpoint") from error
    version = data.get("format_version") if isinstance(data, dict) else FORMAT_VERSION
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"{file}: format_version is {version!r}, this edge-asr reads {FORMAT_VERSION}; "
            "use the matching release"
        )
    if isinstance(data, dict) and isinstance(data.get("provenance"), dict) and "facts" not in data:
        data = _with_facts(data)
    config = record_from_json(NativeConfig, data, str(file), error=CheckpointError, remedy=_REMEDY)
    check_agreement(config.model, config.features, config.vocabulary, folder)
    return config


def _with_facts(data: dict[str, Any]) -> dict[str, Any]:
    provenance = {key: value for key, value in data["provenance"].items() if key not in _OLD_NAMES}
    facts = {new: data["provenance"][old] for old, new in _OLD_NAMES.items() if old in data["provenance"]}
    return {**data, "provenance": provenance, "facts": facts}


def check_agreement(
    model: ConformerConfig, features: FeatureConfig, vocabulary: Vocabulary, where: Path
) -> None:
    """Refuse a front end or vocabulary of another size than the model's.

    Raises:
        CheckpointError: it names both numbers.
    """
    if model.n_mels != features.n_mels:
        raise CheckpointError(
            f"{where}: the model takes {model.n_mels} mel bands, the features give {features.n_mels}"
        )
    if model.vocab_size != len(vocabulary.tokens):
        raise CheckpointError(
            f"{where}: the model has {model.vocab_size} outputs, the vocabulary "
            f"{len(vocabulary.tokens)} tokens (blank included)"
        )
    if vocabulary.blank_id != model.blank_id:
        raise CheckpointError(
            f"{where}: the blank is token {vocabulary.blank_id}; our models have it last ({model.blank_id})"
        )


def resolve_path(path_or_name: str | Path) -> Path:
    """An existing path as it is; else the embedded model of that name, if there is one; else the path."""
    path = Path(path_or_name)
    return path if path.exists() else find_embedded(path_or_name, "checkpoint") or path
