"""NeMo's `.nemo` files: Conformer and FastConformer CTC models, and the CTC branch of hybrid ones.

It opens the archive in memory, reads `model_config.yaml`, and assembles weights, front end and tokens. NeMo
is not needed.
What this file does not do: load models without a CTC head (transducers, AED), adapters, other encoders.
The parts: nemo_encoder.py (network), nemo_features.py (front end), nemo_tokenizer.py (tokens).

Source: nemo/core/connectors/save_restore_connector.py, nemo/collections/asr/models/ctc_models.py,
hybrid_rnnt_ctc_models.py, modules/conv_asr.py (ConvASRDecoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_asr.checkpoints.assembly import TensorMap, build_checkpoint, build_config
from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts
from edge_asr.checkpoints.nemo_encoder import encoder_fields, move_encoder, trained_contexts
from edge_asr.checkpoints.nemo_features import check_stored_front_end, features_from_config
from edge_asr.checkpoints.nemo_tokenizer import read_tokens
from edge_asr.checkpoints.registry import LoadOptions
from edge_asr.checkpoints.safe_archive import MAX_MEMBER_BYTES, read_members
from edge_asr.checkpoints.safe_torch import load_tensors
from edge_asr.checkpoints.safe_yaml import MAX_BYTES, Settings, load_yaml
from edge_asr.checkpoints.vocabularies import vocabulary_from_tokens
from edge_asr.errors import CheckpointError

CONFIG_NAME = "model_config.yaml"
WEIGHTS_NAME = "model_weights.ckpt"
_CTC = ("EncDecCTCModel", "EncDecCTCModelBPE")
_HYBRID = ("EncDecHybridRNNTCTCModel", "EncDecHybridRNNTCTCBPEModel")
# Training, decoding by other means, and bookkeeping: nothing of it changes the log-probabilities.
_IGNORED = (
    "train_ds", "validation_ds", "test_ds", "spec_augment", "optim", "decoding", "interctc", "loss",
    "ctc_reduction", "rnnt_reduction", "log_prediction", "skip_nan_grad", "compute_eval_loss", "use_cer",
    "sample_rate", "model_defaults", "variational_noise", "freeze_updates", "use_cache", "wer",
    "init_from_nemo_model", "init_from_ptl_ckpt", "init_from_pretrained_model", "init_strict", "name",
    "joint", "labels", "target", "nemo_version", "tokenizer", "preprocessor", "encoder", "decoder", "aux_ctc",
    "bucketing_strategy", "repeat", "dropout", "separable", "nb_augmentation_prob", "timestamps",
    "tokenizer_file", "return_logits", "validate_dl", "use_loss_mask_for_prompt", "max_steps", "rnnt",
)  # fmt: skip


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a `.nemo` file.

    Args:
        path: the file.
        options: `feature_preset` "nemo" or "nemo-2.4" names the front end's generation; None reads it from
            the version in the file.

    Raises:
        CheckpointError: damaged, hostile, or a model that edge-asr does not have; it names the setting.
    """
    members = read_members(path, _largest)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if name not in members:
            raise CheckpointError(f"{path} holds no {name}; it is no NeMo model, or its download broke off")
    values = load_yaml(members[CONFIG_NAME], f"{path.name}: {CONFIG_NAME}")
    target = str(values.get("target", ""))
    kind = target.rpartition(".")[2]
    where = f"{path.name}: {CONFIG_NAME}"
    if kind not in (*_CTC, *_HYBRID):
        raise CheckpointError(
            f"{path} is a {kind or 'model without a target'}; edge-asr takes {', '.join(_CTC)} and "
            f"the CTC branch of {' and '.join(_HYBRID)}"
        )
    if values.get("adapters"):
        raise CheckpointError(f"{path} has adapters; edge-asr takes models without them (merge or drop them)")
    notes: list[str] = []
    decoder = _decoder_settings(values, where, hybrid=kind in _HYBRID)
    features, cmvn = features_from_config(values, where, options.feature_preset, notes)
    encoder = encoder_fields(_section(values, "encoder", where), features.n_mels)
    tokens = read_tokens(values, decoder.take("vocabulary", None), members, where, bpe="BPE" in kind)
    n_classes = decoder.integer("num_classes", -1)
    if n_classes > 0 and n_classes != len(tokens.pieces):
        raise CheckpointError(
            f"{where}: the decoder has {n_classes} classes, the tokenizer {len(tokens.pieces)} tokens"
        )
    decoder.ignore("_target_", "feat_in", "init_mode")
    decoder.expect("add_blank", (True,), True)
    decoder.finish()
    _refuse_unknown(values, where)
    vocabulary = vocabulary_from_tokens((*tokens.pieces, "<blk>"), len(tokens.pieces), tokens.kind, str(path))
    config = build_config(
        where, vocab_size=len(vocabulary), n_mels=features.n_mels, cmvn=cmvn is not None, **encoder.fields
    )
    weights = TensorMap(load_tensors(members[WEIGHTS_NAME], f"{path.name}: {WEIGHTS_NAME}"), str(path))
    move_encoder(weights, config, encoder)
    head = "ctc_decoder" if kind in _HYBRID else "decoder"
    encoder.move_head(weights, f"{head}.decoder_layers.0")
    if cmvn is not None:
        weights.ours["cmvn.mean"], weights.ours["cmvn.istd"] = cmvn
    check_stored_front_end(weights, features, str(path))
    if kind in _HYBRID:
        weights.ignore(r"(decoder|joint)\..*")
        notes.append("The transducer branch (decoder, joint) was left out; the CTC branch is exported.")
    weights.ignore(r"(spec_augmentation|spec_augment|loss|wer|ctc_loss|ctc_wer)\..*")
    return build_checkpoint(
        path=path,
        config=config,
        tensors=weights.finish(),
        features=features,
        vocabulary=vocabulary,
        provenance={
            "format": "nemo",
            "file": path.name,
            "target": target,
            "nemo_version": values.get("nemo_version"),
            "normalize": features.normalize if cmvn is None else "fixed",
        },
        facts=SourceFacts(
            source_blank_id=len(tokens.pieces),
            notes=(*notes, *encoder.notes, *tokens.notes),
            **trained_contexts(values["encoder"]),
        ),
        tokenizer_model=tokens.model,
    )


def _largest(name: str) -> int:
    """Most bytes of a member; all files are read, because the names of tokenizers hold a hash."""
    if name.startswith("."):
        return 0
    return MAX_MEMBER_BYTES if name == WEIGHTS_NAME else MAX_BYTES


def _section(values: Mapping[str, Any], key: str, where: str) -> Settings:
    return Settings(values, where).section(key)


def _decoder_settings(values: Mapping[str, Any], where: str, *, hybrid: bool) -> Settings:
    decoder = (
        _section(values, "aux_ctc", where).section("decoder")
        if hybrid
        else _section(values, "decoder", where)
    )
    name = str(decoder.take("_target_", "ConvASRDecoder"))
    if name.rpartition(".")[2] != "ConvASRDecoder":
        raise decoder.refusal("_target_", name, "ConvASRDecoder")
    return decoder


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    settings = Settings(values, where)
    settings.ignore(*_IGNORED, "adapters")
    settings.finish()
