"""Turns another project's tensors into a `Checkpoint`: each is used once, and each of ours is filled.

It takes tensors by name and shape, renames them, reports what is left over, and checks the whole.
What this file does not do: know the names of a project (each loader does), open files (`safe_*.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts, check_agreement
from edge_asr.checkpoints.vocabularies import move_blank_last
from edge_asr.errors import CheckpointError, ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.config import ConformerConfig
from edge_asr.model.ctc import ConformerCTC
from edge_asr.vocabulary import Vocabulary


class TensorMap:
    """Moves another project's tensors to our names.

    Args:
        tensors: name -> tensor, as `safe_torch` gives them.
        where: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.where = where
        self.ours: dict[str, Tensor] = {}
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """Names that nobody took yet."""
        return list(self._left)

    def take(self, name: str) -> Tensor:
        """Take one tensor, which then counts as used.

        Raises:
            CheckpointError: there is none of that name.
        """
        if name not in self._left:
            raise CheckpointError(
                f"{self.where} lacks the tensor {name!r}, which its settings ask for; use the settings "
                "and weights of one checkpoint"
            )
        return self._left.pop(name)

    def move(self, source: str, target: str) -> None:
        """Take one tensor unchanged."""
        self.ours[target] = self.take(source)

    def linear(self, source: str, target: str, *, bias: bool = True) -> None:
        """weight and bias of a linear layer, or of a convolution with one tap as one; without bias: zeros."""
        weight = self.take(f"{source}.weight")
        while weight.ndim > 2 and weight.shape[-1] == 1:
            weight = weight.squeeze(-1)
        self.ours[f"{target}.weight"] = weight
        self.ours[f"{target}.bias"] = self._bias(source, weight, bias)

    def convolution(self, source: str, target: str, *, bias: bool = True) -> None:
        """weight and bias of a convolution; without bias: zeros."""
        weight = self.take(f"{source}.weight")
        self.ours[f"{target}.weight"] = weight
        self.ours[f"{target}.bias"] = self._bias(source, weight, bias)

    def norm(self, source: str, target: str) -> None:
        """weight and bias of a LayerNorm or GroupNorm."""
        for kind in ("weight", "bias"):
            self.move(f"{source}.{kind}", f"{target}.{kind}")

    def batch_norm(self, source: str, target: str) -> None:
        """A BatchNorm with its running statistics; older files have no `num_batches_tracked`."""
        self.norm(source, target)
        for kind in ("running_mean", "running_var"):
            self.move(f"{source}.{kind}", f"{target}.{kind}")
        self._left.pop(f"{source}.num_batches_tracked", None)
        self.ours[f"{target}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)

    def stack_linears(self, sources: list[str], target: str, *, bias: bool = True) -> None:
        """Several linear layers over the same input as one, rows in order: q, k, v into `attention.qkv`."""
        weights = [self.take(f"{source}.weight") for source in sources]
        self.ours[f"{target}.weight"] = torch.cat(weights)
        biases = [self._bias(source, weight, bias) for source, weight in zip(sources, weights, strict=True)]
        self.ours[f"{target}.bias"] = torch.cat(biases)

    def head(self, source: str, blank_id: int) -> None:
        """Take the CTC layer, with the blank's row moved to the end."""
        self.linear(source, "head.projection")
        for name in ("head.projection.weight", "head.projection.bias"):
            self.ours[name] = move_blank_last(self.ours[name], blank_id)

    def ignore(self, pattern: str) -> int:
        """Drop tensors whose whole name matches the regular expression; how many there were."""
        names = [name for name in self._left if re.fullmatch(pattern, name)]
        for name in names:
            del self._left[name]
        return len(names)

    def finish(self) -> dict[str, Tensor]:
        """Our tensors, when nothing is left over.

        Raises:
            CheckpointError: a tensor that nobody took; it names the first ones.
        """
        if self._left:
            names = sorted(self._left)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise CheckpointError(
                f"{self.where} has tensors that edge-asr does not know ({', '.join(names[:5])}{more}); "
                "they may change the result, so this checkpoint is refused"
            )
        return self.ours

    def _bias(self, source: str, weight: Tensor, bias: bool) -> Tensor:
        return self.take(f"{source}.bias") if bias else torch.zeros(weight.shape[0])


def build_config(where: str, **fields: Any) -> ConformerConfig:
    """A `ConformerConfig` whose errors name the checkpoint.

    Raises:
        CheckpointError: settings that no network here has.
    """
    try:
        return ConformerConfig(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def build_features(where: str, preset: str, **overrides: Any) -> FeatureConfig:
    """A `FeatureConfig` whose errors name the checkpoint.

    Raises:
        CheckpointError: settings that no front end here has.
    """
    try:
        return FeatureConfig.from_preset(preset, **overrides)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def build_checkpoint(
    *,
    path: Path,
    config: ConformerConfig,
    tensors: Mapping[str, Tensor],
    features: FeatureConfig,
    vocabulary: Vocabulary,
    provenance: Mapping[str, Any],
    facts: SourceFacts,
    tokenizer_model: bytes | None = None,
) -> Checkpoint:
    """A whole checkpoint: names, shapes, front end and vocabulary fit the configuration.

    Raises:
        CheckpointError: a tensor of ours that is missing, unknown or of another shape, or parts that
            contradict each other.
    """
    try:
        with torch.device("meta"):
            expected = ConformerCTC(config).state_dict()
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes whose product has no integer
        raise CheckpointError(f"{path}: its settings make no network ({error})") from error
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - set(expected))]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, the settings say {tuple(like.shape)}"
        for name, like in expected.items()
        if name in tensors and tensors[name].shape != like.shape
    ]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise CheckpointError(f"{path}: weights do not fit the settings: {'; '.join(problems[:5])}{more}")
    check_agreement(config, features, vocabulary, path)
    return Checkpoint(
        model_config=config,
        state_dict={name: tensors[name].contiguous() for name in expected},
        features=features,
        vocabulary=vocabulary,
        provenance=dict(provenance),
        path=path,
        facts=facts,
        tokenizer_model=tokenizer_model,
    )
