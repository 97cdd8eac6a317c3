"""Turns a `TrainConfig` into what the loop needs: corpora, tokenizer, model, dev sets.

All checks that could stop a run happen here, before the first step.
What this file does not do: train (trainer.py).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_asr.checkpoints.native import Checkpoint, load_checkpoint
from edge_asr.errors import ConfigError, TrainingError
from edge_asr.feature_config import FeatureConfig
from edge_asr.metrics import normalize_text
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.training.config import TrainConfig
from edge_asr.training.corpus import Corpus, Progress, check_targets, load_corpus, load_recordings
from edge_asr.training.pipeline import compute_cmvn
from edge_asr.training.tokenizer import Tokenizer, tokenizer_from_vocabulary, train_tokenizer

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Prepared:
    """Everything that a run needs and that does not change during it."""

    features: FeatureConfig
    tokenizer: Tokenizer
    model: ConformerCTC
    train: Corpus
    targets: list[npt.NDArray[np.int64]]
    dev: Corpus
    test: Corpus
    noises: list[npt.NDArray[np.int16]]

    @property
    def mask_value(self) -> npt.NDArray[np.float32]:
        """Return f32 [n_mels], the fill of SpecAugment, which is zero after the model's normalization."""
        cmvn = self.model.cmvn
        if cmvn is None:
            return np.zeros(self.features.n_mels, np.float32)
        return np.asarray(cmvn.mean.detach().cpu().numpy(), dtype=np.float32)


def build_features(config: TrainConfig, init: Checkpoint | None) -> FeatureConfig:
    """Choose the front end: the checkpoint's with init_from, else that of the `features` section.

    Raises:
        ConfigError: keys are unknown, or the features differ from the checkpoint's.
    """
    values = dict(config.features)
    preset = values.pop("preset", "nemo")
    features = FeatureConfig.from_preset(preset, **values)
    if init is not None and init.features != features:
        if config.features != {"preset": "nemo"}:
            raise ConfigError(
                f"features differ from those of init_from {config.init_from}; "
                "remove the features section to use its own"
            )
        return init.features
    return features


def prepare(
    config: TrainConfig,
    *,
    strict: bool = False,
    resumed: tuple[Tokenizer, ConformerConfig] | None = None,
    progress: Progress | None = None,
    report: Callable[[Corpus, Corpus, Corpus], None] | None = None,
) -> Prepared:
    """Read, check and build everything.

    Args:
        config: the run.
        strict: refuse to start if any row is bad.
        resumed: tokenizer and model shape of the run that is resumed; its weights are loaded later.
        progress: wraps the rows being decoded, for a progress bar.
        report: called with the train, dev and test corpora once every row is judged, before `strict` acts.

    Raises:
        ConfigError, ManifestError, CheckpointError: see the message.
        TrainingError: rows are bad with `strict`, or no utterance is usable.
    """
    init = load_checkpoint(config.init_from) if config.init_from is not None and resumed is None else None
    features = build_features(config, init)
    if not config.data.train:
        raise ConfigError("data.train is empty; name at least one manifest or corpus folder")
    cache_dir = Path(config.data.cache_dir or Path(config.run_dir) / "cache")
    load = {"sample_rate": features.sample_rate, "cache_dir": cache_dir, "progress": progress}
    train = load_corpus(config.data.train, config.data, **load)  # type: ignore[arg-type]
    dev = load_corpus(config.data.dev, config.data, **load)  # type: ignore[arg-type]
    test = load_corpus(config.data.test, config.data, **load)  # type: ignore[arg-type]
    noises = []
    if config.augment.noise_manifest is not None:
        noises = load_recordings(
            config.augment.noise_manifest,
            config.data,
            sample_rate=features.sample_rate,
            cache_dir=cache_dir,
        )
    if not train.clips:
        raise TrainingError(f"no usable training utterance; bad rows: {train.count_reasons() or 'none'}")
    if resumed is not None:
        tokenizer, model_config = resumed
    else:
        tokenizer = _build_tokenizer(config, init, train)
        model_config = build_model_config(config, init, len(tokenizer.vocabulary), features)
    if config.augment.vtlp_range != (1.0, 1.0) and features.kind != "log_mel":
        raise ConfigError("augment.vtlp_range warps mel bands; leave it out with features of kind waveform")
    extractor = FeatureExtractor(features)
    factor = model_config.subsampling_factor

    def n_output_frames(n_samples: int) -> int:
        return -(-extractor.n_frames(n_samples) // factor)

    speed = max(config.augment.speeds) if config.augment.enabled else 1.0
    train, targets = check_targets(train, tokenizer, n_output_frames=n_output_frames, fastest_speed=speed)
    if report is not None:
        report(train, dev, test)
    n_bad = len(train.bad_rows) + len(dev.bad_rows) + len(test.bad_rows)
    if strict and n_bad:
        raise TrainingError(f"{n_bad} bad rows and --strict was given; they are listed in bad_rows.jsonl")
    if not train.clips:
        raise TrainingError(f"no usable training utterance; bad rows: {train.count_reasons()}")
    torch.manual_seed(config.seed)
    model = ConformerCTC(model_config)
    initialize_subsampling(model)
    if resumed is None:
        _initialize(model, config, init, train, features)
    return Prepared(features, tokenizer, model, train, targets, dev, test, noises)


@torch.no_grad()
def initialize_subsampling(model: ConformerCTC) -> None:
    """Initialize the subsampling so that the signal survives it (He et al. 2015), biases zero.

    With torch's default, each stage shrinks the signal and keeps its biases. After an x8 stack of
    128 channels 98 % of the power is a constant, on real speech, and CTC stays on its blank plateau. With
    this initialization it is 55 %.
    """
    subsampling: Any = model.encoder.subsampling
    if not hasattr(subsampling, "stages"):  # those of one or two layers keep the signal
        return
    for stage in subsampling.stages:
        convolutions = [layer for layer in stage.modules() if isinstance(layer, torch.nn.Conv2d)]
        for layer in convolutions:
            # Only the last one of a stage is followed by a ReLU, which halves the power.
            gain = 2.0 if layer is convolutions[-1] else 1.0
            layer.weight.normal_(0.0, math.sqrt(gain / layer.weight[0].numel()))
            if layer.bias is not None:
                layer.bias.zero_()
    subsampling.out.weight.normal_(0.0, math.sqrt(1.0 / subsampling.out.in_features))
    subsampling.out.bias.zero_()


def write_bad_rows(path: Path, *corpora: Corpus) -> None:
    """Write one JSON object per bad row; the file is written even if there is none."""
    with path.open("w", encoding="utf-8") as file:
        for corpus in corpora:
            for bad in corpus.bad_rows:
                file.write(json.dumps(bad.to_dict(), ensure_ascii=False) + "\n")


def _build_tokenizer(config: TrainConfig, init: Checkpoint | None, train: Corpus) -> Tokenizer:
    if init is not None and not config.override_init:
        return tokenizer_from_vocabulary(init.vocabulary, init.tokenizer_model)
    extra: list[str] = []
    if config.tokenizer.extra_text is not None:
        path = Path(config.tokenizer.extra_text)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read tokenizer.extra_text {path}: {error}") from error
        extra = [text for line in lines if (text := normalize_text(line, config.data.text_normalization))]
    return train_tokenizer(
        config.tokenizer, [clip.text for clip in train.clips], [clip.weight for clip in train.clips], extra
    )


def build_model_config(
    config: TrainConfig, init: Checkpoint | None, vocab_size: int, features: FeatureConfig
) -> ConformerConfig:
    """The shape of the `model` section, or that of a checkpoint with single keys changed.

    Raises:
        ConfigError: a key that is not one of the shape, or one that training fills in.
    """
    values = dict(config.model)
    preset = values.pop("preset", "tiny")
    for key in ("vocab_size", "n_mels"):
        if key in values:
            raise ConfigError(f"model.{key} is filled in by training; remove it")
    for key in ("decoder", "right_decoder"):
        if key in values:
            raise ConfigError(f"model.{key} does not belong there; use the section decoder")
    initial = None if init is None else init.model_config
    decoder = config.decoder.choose(initial)
    if initial is not None:
        # The checkpoint gives the shape; single keys (dropout, ...) may be changed.
        begun = {**initial.to_dict(), **values, "vocab_size": vocab_size, "decoder": decoder}
        return ConformerConfig.from_dict(begun)
    values["decoder"] = decoder
    shape = ConformerConfig.from_preset(preset, vocab_size=vocab_size, n_mels=features.n_mels, **values)
    if (
        config.optim.intermediate_weight > 0
        and "intermediate_ctc_layers" not in values
        and shape.n_layers > 1
    ):
        shape = dataclasses.replace(shape, intermediate_ctc_layers=(shape.n_layers // 2,))
    return shape


def _initialize(
    model: ConformerCTC, config: TrainConfig, init: Checkpoint | None, train: Corpus, features: FeatureConfig
) -> None:
    """Load the weights of init_from, and set the global CMVN."""
    if init is not None:
        mine = model.state_dict()
        usable = {
            name: value
            for name, value in init.state_dict.items()
            if name in mine and mine[name].shape == value.shape
        }
        fresh = sorted(set(mine) - set(usable))
        if init.model_config.decoder is None:  # a new one begins anew
            fresh = [name for name in fresh if not name.startswith("decoder.")]
        if fresh and not config.override_init:
            raise TrainingError(
                f"init_from {config.init_from} has no tensor that fits {fresh[0]} "
                f"(and {len(fresh) - 1} more); leave the model keys out, "
                "or set override_init: true to initialize those anew"
            )
        model.load_state_dict(usable, strict=False)
        if fresh:
            _LOG.warning("%d tensors are initialized anew: %s", len(fresh), ", ".join(fresh[:5]))
    has_cmvn: Any = model.cmvn
    if has_cmvn is not None and (init is None or config.override_init):
        mean, std = compute_cmvn(train.clips, features, n_clips=config.cmvn_utterances, seed=config.seed)
        model.set_cmvn(mean, std)
