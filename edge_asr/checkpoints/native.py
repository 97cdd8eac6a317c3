"""Our own checkpoint: a folder of config.json, model.safetensors and, for SentencePiece, tokenizer.model.

It writes all of it or nothing, and reads it with every name, shape and setting checked, float16 as float32.
What this file does not do: hold optimizer state (`edge_asr.training`), read or write pickles.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from edge_asr.atomic import partial_folder, put_in_place
from edge_asr.bundle.folder import list_embedded_models
from edge_asr.checkpoints.native_config import (
    CONFIG_NAME,
    NO_FACTS,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    NativeConfig,
    SourceFacts,
    check_agreement,
    read_config,
    resolve_path,
)
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.config import ConformerConfig, ContextStyle
from edge_asr.model.ctc import ConformerCTC
from edge_asr.vocabulary import Vocabulary

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        model_config: shape of the network.
        state_dict: its tensors, floating ones as float32, exactly the names `ConformerCTC.state_dict` has.
        features: the front end it was trained with.
        vocabulary: its tokens, blank last.
        provenance: where the weights came from; free-form JSON, for people only.
        path: the folder it was read from.
        facts: what the original says besides its network; mostly read through the properties below.
        tokenizer_model: content of tokenizer.model, or None.
    """

    model_config: ConformerConfig
    state_dict: dict[str, Tensor]
    features: FeatureConfig
    vocabulary: Vocabulary
    provenance: dict[str, Any]
    path: Path
    facts: SourceFacts = NO_FACTS
    tokenizer_model: bytes | None = None

    @property
    def source_blank_id(self) -> int:
        """The blank's place among the original's outputs; ours is always last."""
        blank_id = self.facts.source_blank_id
        return self.vocabulary.blank_id if blank_id is None else blank_id

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the loader assumed or left out."""
        return self.facts.notes

    @property
    def attention_contexts(self) -> tuple[tuple[int, int], ...]:
        """Every (left, right) context of its training, the configuration's first; none for full context."""
        contexts = self.facts.attention_contexts or (self.model_config.attention_context,)
        return tuple(context for context in contexts if context is not None and max(context) >= 0)

    @property
    def attention_context_style(self) -> ContextStyle:
        """The way in which those contexts limit attention."""
        return self.facts.attention_context_style or self.model_config.attention_context_style

    @property
    def has_dynamic_chunks(self) -> bool:
        """Tell whether the loader knows that it was trained with chunks of many sizes."""
        return self.facts.dynamic_chunks

    def without_decoder(self) -> "Checkpoint":
        """The same without its attention decoders."""
        if self.model_config.decoder is None:
            return self
        config = dataclasses.replace(self.model_config, decoder=None, right_decoder=None)
        prefixes = ("decoder.", "right_decoder.")
        tensors = {name: t for name, t in self.state_dict.items() if not name.startswith(prefixes)}
        facts = dataclasses.replace(self.facts, ctc_weight=None, reverse_weight=None)
        return dataclasses.replace(self, model_config=config, state_dict=tensors, facts=facts)

    def build_model(self) -> ConformerCTC:
        """The network with a copy of these weights, on the CPU, in eval mode."""
        model = ConformerCTC(self.model_config)
        model.load_state_dict(self.state_dict, strict=True)
        return model.eval()


def save_checkpoint(
    path: str | Path,
    model: ConformerCTC,
    features: FeatureConfig,
    vocabulary: Vocabulary,
    provenance: Mapping[str, Any],
    dtype: Literal["float32", "float16"] = "float32",
    tokenizer_model: bytes | None = None,
    *,
    facts: SourceFacts = NO_FACTS,
) -> Path:
    """Write a checkpoint folder: complete beside its place, then swapped in (`edge_asr.atomic`).

    An older checkpoint at `path` is replaced, and is whole until then; a folder holding anything else is left
    alone.

    Args:
        path: the folder to make; parents are created.
        dtype: storage of floating tensors.
        tokenizer_model: a SentencePiece model to keep beside the weights.
        facts: about the model's origin, `Checkpoint.facts` of what it was made from.

    Returns:
        The folder.

    Raises:
        CheckpointError: when `path` holds other files, the parts contradict each other, a weight is not
            finite (in `dtype`), or the provenance is not JSON.
    """
    target = Path(path).resolve()  # the folder that a link points to, not the link
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype must be float32 or float16, got {dtype!r}")
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
                f"tensor {name} is not finite as {dtype}; the model diverged, or needs float32"
            )
    config = NativeConfig(
        model=model.config,
        features=features,
        vocabulary=vocabulary,
        provenance=provenance,
        facts=facts,
    )
    try:
        text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        content = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the provenance must be plain JSON values: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(target) as partial:
        (partial / CONFIG_NAME).write_bytes(content)
        (partial / WEIGHTS_NAME).write_bytes(save(tensors))  # save_file would make it private
        if tokenizer_model is not None:
            (partial / TOKENIZER_NAME).write_bytes(tokenizer_model)
        put_in_place(partial, target)
    return Path(path)


def load_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Read a checkpoint folder, or an embedded one by name ("tiny-en").

    Raises:
        CheckpointError: for a missing or damaged file, an unknown format version or key, settings that
            contradict each other, or tensors that are missing, unexpected, of a wrong shape or type, or not
            finite.
    """
    path = resolve_path(path_or_name)
    if not path.is_dir():
        names = list_embedded_models("checkpoint")
        hint = f"; embedded models: {', '.join(names)}" if names else ""
        raise CheckpointError(f"{path_or_name} is not a checkpoint folder{hint}")
    config = read_config(path)
    tokenizer = path / TOKENIZER_NAME
    return Checkpoint(
        model_config=config.model,
        state_dict=_read_tensors(path / WEIGHTS_NAME, config.model),
        features=config.features,
        vocabulary=config.vocabulary,
        provenance=dict(config.provenance),
        path=path,
        facts=config.facts,
        tokenizer_model=tokenizer.read_bytes() if tokenizer.is_file() else None,
    )


def _check_target(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file; give the name of a folder")
    others = sorted({entry.name for entry in target.iterdir()} - {CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME})
    if others:
        raise CheckpointError(
            f"{target} holds files that are no checkpoint ({others[0]}); choose another folder"
        )


def _read_tensors(file: Path, config: ConformerConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = ConformerCTC(config).state_dict()
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; the checkpoint is incomplete")
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
                    "use the two files of one checkpoint"
                )
            for name, like in expected.items():
                tensors[name] = _checked_tensor(handle.get_tensor(name), name, like, file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
    return tensors


def _checked_tensor(tensor: Tensor, name: str, like: Tensor, file: Path) -> Tensor:
    if not like.is_floating_point():
        if tensor.dtype != like.dtype:
            raise CheckpointError(f"{file}: {name} is {tensor.dtype}, expected {like.dtype}")
        return tensor
    if tensor.dtype not in _DTYPES.values():
        raise CheckpointError(f"{file}: {name} is {tensor.dtype}, expected float32 or float16")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{file}: {name} holds values that are not finite; the file is damaged")
    return tensor.to(torch.float32)
