"""ESPnet2 folders: config.yaml and a .pth file, bare or as ESPnet packs them (meta.yaml, exp/, data/).

It loads `ESPnetASRModel` with a Conformer encoder, its CTC branch and its Transformer decoder. Another
decoder or a transducer is left out, and a note says so. espnet is not needed.
What this file does not do: unpack .zip files, average snapshots.

Sources: espnet2/tasks/asr.py, espnet2/asr/espnet_model.py, espnet2/asr/encoder/conformer_encoder.py,
espnet2/main_funcs/pack_funcs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_asr.checkpoints.assembly import TensorMap, build_checkpoint, build_config
from edge_asr.checkpoints.espnet_blocks import BlockForm, move_encoder
from edge_asr.checkpoints.espnet_decoder import Decoders, read_decoder
from edge_asr.checkpoints.espnet_features import (
    MAX_STATISTICS_BYTES,
    check_stored_filters,
    features_from_settings,
    move_cmvn,
)
from edge_asr.checkpoints.espnet_folder import EspnetFolder, open_folder
from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts
from edge_asr.checkpoints.registry import LoadOptions
from edge_asr.checkpoints.safe_archive import read_file
from edge_asr.checkpoints.safe_torch import load_tensors
from edge_asr.checkpoints.safe_yaml import MAX_BYTES, Settings, load_yaml
from edge_asr.checkpoints.vocabularies import vocabulary_from_tokens
from edge_asr.errors import CheckpointError
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary, VocabularyKind

#: `input_layer` -> subsampling factor.
_INPUT_LAYERS = {"conv2d": 4, "conv2d1": 1, "conv2d2": 2, "conv2d6": 6, "conv2d8": 8, "linear": 1}
#: espnet/nets/pytorch_backend/nets_utils.py, get_activation.
_ACTIVATIONS = {
    "swish": "silu", "relu": "relu", "gelu": "gelu", "tanh": "tanh", "hardtanh": "hardtanh", "selu": "selu",
}  # fmt: skip
_LAYER_NORM_EPS = 1e-12  # espnet/nets/pytorch_backend/transformer/layer_norm.py
_BLANK, _SPACE = "<blank>", "<space>"

# Training, data and bookkeeping (espnet2/tasks/abs_task.py, asr.py): nothing of it changes an output.
_TRAINING = (
    "config", "print_config", "log_level", "drop_last_iter", "dry_run", "iterator_type",
    "valid_iterator_type", "output_dir", "ngpu", "seed", "num_workers", "num_att_plot", "dist_backend",
    "dist_init_method", "dist_world_size", "dist_rank", "local_rank", "dist_master_addr", "dist_master_port",
    "dist_launcher", "multiprocessing_distributed", "unused_parameters", "sharded_ddp", "use_deepspeed",
    "deepspeed_config", "gradient_as_bucket_view", "ddp_comm_hook", "cudnn_enabled", "cudnn_benchmark",
    "cudnn_deterministic", "use_tf32", "collect_stats", "write_collected_feats", "max_epoch", "patience",
    "val_scheduler_criterion", "early_stopping_criterion", "best_model_criterion", "keep_nbest_models",
    "nbest_averaging_interval", "grad_clip", "grad_clip_type", "grad_noise", "accum_grad", "no_forward_run",
    "resume", "train_dtype", "use_amp", "log_interval", "use_matplotlib", "use_tensorboard",
    "create_graph_in_tensorboard", "use_wandb", "wandb_project", "wandb_id", "wandb_entity", "wandb_name",
    "wandb_model_log_interval", "detect_anomaly", "adapter", "save_strategy", "adapter_conf",
    "pretrain_path", "pretrain_key", "init_param", "ignore_init_mismatch", "freeze_param",
    "num_iters_per_epoch",
    "batch_size", "valid_batch_size", "batch_bins", "valid_batch_bins", "category_sample_size",
    "upsampling_factor", "category_upsampling_factor", "dataset_upsampling_factor", "dataset_scaling_factor",
    "max_batch_size", "min_batch_size", "train_shape_file", "valid_shape_file", "batch_type",
    "valid_batch_type", "fold_length", "sort_in_batch", "shuffle_within_batch", "sort_batch",
    "multiple_iterator", "chunk_length", "chunk_shift_ratio", "num_cache_chunks",
    "chunk_excluded_key_prefixes", "chunk_default_fs", "chunk_max_abs_length", "chunk_discard_short_samples",
    "train_data_path_and_name_and_type", "valid_data_path_and_name_and_type", "multi_task_dataset",
    "allow_variable_data_keys", "max_cache_size", "max_cache_fd", "allow_multi_rates", "valid_max_cache_size",
    "exclude_weight_decay", "exclude_weight_decay_conf", "optim", "optim_conf", "scheduler", "scheduler_conf",
    "init", "ctc_conf", "rnnt_conf", "joint_net_conf", "use_preprocessor",
    "non_linguistic_symbols", "cleaner", "g2p", "rir_scp", "rir_apply_prob", "noise_scp",
    "noise_apply_prob", "noise_db_range", "short_noise_thres", "aux_ctc_tasks", "specaug", "specaug_conf",
    "preprocessor", "preprocessor_conf", "preencoder_conf", "postencoder_conf", "required",
    "version", "distributed", "data_aug_effects", "data_aug_num", "data_aug_prob",
)  # fmt: skip
_MODEL_TRAINING = (
    "ignore_id", "lsm_weight", "length_normalized_loss", "report_cer", "report_wer", "sym_space", "sym_sos",
    "sym_eos", "extract_feats_in_collect_stats", "lang_token_id", "interctc_weight", "aux_ctc",
    "autocast_frontend", "rnnt_weight", "transducer_multi_blank_sigma",
)  # fmt: skip


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a folder, or the .pth file of one.

    Raises:
        CheckpointError: a file that is missing or damaged, or a setting that edge-asr does not have.
    """
    options.refuse_feature_preset("an ESPnet model")
    folder = open_folder(path)
    where = f"{folder.root.name}: {folder.config.name}"
    values = load_yaml(folder.config, where)
    settings = Settings(values, where)
    notes = list(folder.notes)
    tokens = _tokens(settings, folder)
    vocabulary = _vocabulary(tokens, settings, notes)
    model, ctc_weight = _expect_ctc_model(settings)
    normalize = settings.take("normalize", "utterance_mvn")
    if normalize not in (None, "utterance_mvn", "global_mvn"):
        raise settings.refusal("normalize", normalize, "utterance_mvn, global_mvn or null")
    normalize_conf = settings.section("normalize_conf", {})
    features = features_from_settings(settings.section("frontend_conf", {}), normalize, normalize_conf)
    kind = settings.take("decoder", None)
    decoder_conf = settings.section("decoder_conf", {})
    prompts = [settings.take(f"use_{name}_prompt", False) for name in ("lang", "nlp")]
    fields, macaron = _encoder_fields(settings.section("encoder_conf", {}))
    bpe_model = settings.take("bpemodel", None)
    settings.ignore(*_TRAINING)
    settings.finish()
    weights = TensorMap(load_tensors(folder.weights), str(folder.weights))
    decoders = Decoders()
    # One that was trained with prompts is another decoder.
    usual = kind == "transformer" and not any(prompts)
    if options.decoder and usual and any(name.startswith("decoder.") for name in weights.names()):
        decoders = read_decoder(
            decoder_conf, model, tokens, ctc_weight, d_model=fields["d_model"], norm_eps=_LAYER_NORM_EPS
        )
    model.ignore(*_MODEL_TRAINING)
    model.finish()
    config = build_config(
        where,
        vocab_size=len(vocabulary),
        n_mels=features.n_mels,
        cmvn=normalize == "global_mvn",
        **fields,
        **decoders.configs,
    )
    move_encoder(weights, config, BlockForm(macaron=macaron))
    weights.head("ctc.ctc_lo", 0)
    if config.cmvn:
        move_cmvn(weights, normalize_conf, features.n_mels, _statistics_reader(folder), notes)
    check_stored_filters(weights, features, str(folder.weights))
    decoders.move(weights, 0)
    left_out = (
        "criterion_att" if decoders.forms else "decoder|joint_network|criterion_att|criterion_transducer"
    )
    if weights.ignore(rf"({left_out})\..*"):
        notes.append(f"The decoder ({kind}) was left out; the CTC branch is exported.")
    if config.attention == "rel_pos_legacy":
        notes.append(
            "rel_pos_type is legacy (ESPnet's default when the settings do not name it): positions as ESPnet "
            "computes them, which depend on the clip's length."
        )
    return build_checkpoint(
        path=path,
        config=config,
        tensors=weights.finish(),
        features=features,
        vocabulary=vocabulary,
        provenance={
            "format": "espnet",
            "file": folder.weights.name,
            "espnet_version": values.get("version"),
            "normalize": normalize,
        },
        facts=SourceFacts(
            source_blank_id=0,
            ctc_weight=decoders.ctc_weight,
            notes=tuple(notes),
        ),
        tokenizer_model=_tokenizer_model(folder, bpe_model),
    )


def _expect_ctc_model(settings: Settings) -> tuple[Settings, float]:
    """The settings of the model, from which those of CTC were taken, and the weight of CTC in training."""
    settings.expect("model", ("espnet",), "espnet")
    settings.expect("frontend", ("default",), "default")
    settings.expect("encoder", ("conformer",))
    settings.expect("use_adapter", (False,), False)
    settings.expect("input_size", (None,), None)
    # The data loader's own scaling of a clip to its peak, where it is set.
    settings.expect("speech_volume_normalize", (None,), None)
    for key in ("preencoder", "postencoder"):
        settings.expect(key, (None,), None)
    model = settings.section("model_conf", {})
    ctc_weight = model.number("ctc_weight", 0.5)
    if ctc_weight <= 0:
        raise model.refusal("ctc_weight", 0, "models trained with CTC (a weight above 0)")
    model.expect("sym_blank", (_BLANK,), _BLANK)
    model.expect("transducer_multi_blank_durations", ([],), [])
    return model, ctc_weight


def _encoder_fields(encoder: Settings) -> tuple[dict[str, Any], bool]:
    """Fields of `ConformerConfig`, and whether the blocks are macaron style."""
    d_model = encoder.integer("output_size", 256)
    input_layer = encoder.expect("input_layer", tuple(_INPUT_LAYERS), "conv2d")
    attention = _attention_fields(encoder)
    activation = _ACTIVATIONS[encoder.expect("activation_type", tuple(_ACTIVATIONS), "swish")]
    fixed: dict[str, tuple[Any, ...]] = {
        "normalize_before": (True,),
        "concat_after": (False,),
        "positionwise_layer_type": ("linear",),
        "use_cnn_module": (True,),
        "interctc_use_conditioning": (False,),
        "ctc_trim": (False,),
    }
    for key, allowed in fixed.items():
        encoder.expect(key, allowed, allowed[0])
    fields: dict[str, Any] = {
        "d_model": d_model,
        "n_heads": encoder.integer("attention_heads", 4),
        "n_layers": encoder.integer("num_blocks", 6),
        "ff_size": encoder.integer("linear_units", 2048),
        "activation": activation,
        "norm_eps": _LAYER_NORM_EPS,
        "conv_kernel_size": encoder.integer("cnn_module_kernel", 31),
        "subsampling": "linear" if input_layer == "linear" else "conv2d",
        "subsampling_factor": _INPUT_LAYERS[input_layer],
        "subsampling_channels": d_model,
        "xscaling": True,
        **attention,
        "position_table": encoder.integer("max_pos_emb_len", 5000),
        "output_norm": True,
    }
    macaron = encoder.flag("macaron_style", False)
    encoder.ignore(
        "dropout_rate", "positional_dropout_rate", "attention_dropout_rate", "padding_idx",
        "positionwise_conv_kernel_size", "interctc_layer_idx", "stochastic_depth_rate", "layer_drop_rate",
        "use_flash_attn", "use_sdpa",
    )  # fmt: skip
    encoder.finish()
    return fields, macaron


def _attention_fields(encoder: Settings) -> dict[str, Any]:
    """Attention and positions: relative, latest or legacy, or plain with absolute ones."""
    kind = encoder.expect("rel_pos_type", ("legacy", "latest"), "legacy")
    position = encoder.take("pos_enc_layer_type", "rel_pos")
    attention = encoder.take("selfattention_layer_type", "rel_selfattn")
    if (position, attention) == ("abs_pos", "selfattn"):
        encoder.expect("qk_norm", (False,), False)
        encoder.ignore("zero_triu")  # of relative attention
        return {"attention": "no_pos", "added_positions": True}
    # "rel_pos" is whichever rel_pos_type says; the explicit names are the legacy ones.
    legacy = kind == "legacy"
    choices = ("rel_pos", "legacy_rel_pos") if legacy else ("rel_pos",)
    if position not in choices:
        raise encoder.refusal(
            "pos_enc_layer_type", position, f"{' or '.join(choices)}, or abs_pos with selfattn"
        )
    choices = ("rel_selfattn", "legacy_rel_selfattn") if legacy else ("rel_selfattn",)
    if attention not in choices:
        raise encoder.refusal("selfattention_layer_type", attention, f"{' or '.join(choices)}")
    encoder.ignore("qk_norm")  # of plain attention
    if legacy:
        encoder.ignore("zero_triu")  # of the latest
    else:
        encoder.expect("zero_triu", (False,), False)
    return {"attention": "rel_pos_legacy" if legacy else "rel_pos"}


def _tokens(settings: Settings, folder: EspnetFolder) -> list[str]:
    tokens = settings.take("token_list")
    if isinstance(tokens, str):
        text = read_file(folder.find(tokens), limit=MAX_BYTES, what="the token list").decode(
            "utf-8", "replace"
        )
        tokens = text.splitlines()
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{settings.where}.token_list must list tokens (texts); quote them in YAML")
    if not tokens or tokens[0] != _BLANK:
        raise settings.refusal(
            "token_list[0]", tokens[0] if tokens else None, f"{_BLANK} (CTC's blank) there"
        )
    return tokens


def _vocabulary(tokens: list[str], settings: Settings, notes: list[str]) -> Vocabulary:
    kind = settings.expect("token_type", ("bpe", "char", "word", "phn"), "bpe")
    if kind in ("word", "phn"):
        tokens = [tokens[0], *(WORD_BOUNDARY + token for token in tokens[1:])]
        notes.append(f"Tokens are {'words' if kind == 'word' else 'phonemes'}; text has spaces between them.")
    elif kind == "char":
        tokens = [WORD_BOUNDARY if token == _SPACE else token for token in tokens]
    return vocabulary_from_tokens(
        tokens, 0, "sentencepiece" if kind != "char" else character_kind(tokens), settings.where
    )


def character_kind(tokens: Sequence[str]) -> VocabularyKind:
    """ "char" where every token is one character or a special in angle brackets; otherwise pieces."""
    single = all(len(token) == 1 or (token[:1] == "<" and token[-1:] == ">") for token in tokens)
    return "char" if single and len(set(tokens)) == len(tokens) else "sentencepiece"


def _statistics_reader(folder: EspnetFolder) -> Any:
    return lambda name: read_file(folder.find(name), limit=MAX_STATISTICS_BYTES, what="the statistics file")


def _tokenizer_model(folder: EspnetFolder, name: Any) -> bytes | None:
    """The SentencePiece model, when the folder has it; texts are put together without it."""
    path = folder.look_up(name) if isinstance(name, str) else None
    return None if path is None else read_file(path, limit=MAX_BYTES, what="the SentencePiece model")
