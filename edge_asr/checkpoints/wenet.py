"""WeNet folders (train.yaml, final.pt, units.txt, global_cmvn): Conformer and U2++ with CTC and decoders.

It loads full-context, static-chunk and dynamic-chunk encoders. A dynamic-chunk model may run with any chunk
size (`ConformerCTC.forward(chunk_frames=...)`); full context is the default, as in WeNet's recognize.py.
Attention decoders of both directions come along (wenet_decoder.py).
What this file does not do: transducers and other decoders, other encoders than the Conformer.

Sources: wenet/utils/{init_model,init_tokenizer,mask,class_utils}.py, wenet/models/transformer/encoder.py.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from edge_asr.checkpoints.assembly import TensorMap, build_checkpoint, build_config
from edge_asr.checkpoints.espnet_blocks import BlockForm, move_encoder
from edge_asr.checkpoints.espnet_decoder import Decoders
from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts
from edge_asr.checkpoints.registry import LoadOptions
from edge_asr.checkpoints.safe_archive import inside, read_file
from edge_asr.checkpoints.safe_torch import load_tensors
from edge_asr.checkpoints.safe_yaml import MAX_BYTES, Settings, load_yaml
from edge_asr.checkpoints.wenet_decoder import ACTIVATIONS, DECODERS, read_decoders
from edge_asr.checkpoints.wenet_features import features_from_settings, move_cmvn
from edge_asr.checkpoints.wenet_units import UNITS_NAMES, vocabulary_from_units
from edge_asr.errors import CheckpointError
from edge_asr.vocabulary import Vocabulary

CONFIG_NAME = "train.yaml"
_WEIGHTS = ("final.pt", "avg.pt")
#: `input_layer` -> subsampling factor.
_INPUT_LAYERS = {"conv2d": 4, "conv2d6": 6, "conv2d8": 8, "linear": 1}

# Training and bookkeeping (wenet/bin/train.py, utils/train_utils.py): nothing of it changes an output.
_TRAINING = (
    "accum_grad", "dataset", "dtype", "grad_clip", "log_interval", "save_interval", "max_epoch", "optim",
    "optim_conf", "scheduler", "scheduler_conf", "model_dir", "train_engine", "use_amp",
    "save_states", "init_infos", "init_step", "vocab_size", "collate_conf", "raw_wav",
    "predictor", "predictor_conf", "joint", "joint_conf", "data_type", "symbol_table", "epoch", "step", "tag",
    "save_time", "ignore_id", "lang", "seed", "lfmmi_dir", "is_distributed", "pre_trained",
)  # fmt: skip


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a folder, or a .pt file of one.

    Raises:
        CheckpointError: a file that is missing or damaged, or a setting that edge-asr does not have.
    """
    options.refuse_feature_preset("a WeNet model")
    folder, file = (path.parent, path) if path.is_file() else (path, _weights_file(path))
    where = f"{folder.name}/{CONFIG_NAME}"
    values = load_yaml(folder / CONFIG_NAME, where)
    settings = Settings(values, where)
    notes: list[str] = []
    settings.expect("encoder", ("conformer",), "conformer")
    settings.expect("model", ("asr_model", "transducer", "k2_model"), "asr_model")
    settings.expect("ctc", ("ctc",), "ctc")
    features = features_from_settings(settings.section("dataset_conf", {}), values.get("collate_conf"))
    blank_id = settings.section("ctc_conf", {}).integer("ctc_blank_id", 0)
    vocabulary, tokenizer_model, special_tokens = _vocabulary(settings, folder, blank_id, where)
    n_outputs = settings.integer("output_dim", len(vocabulary))
    n_mels = settings.integer("input_dim", features.n_mels)
    if (n_outputs, n_mels) != (len(vocabulary), features.n_mels):
        raise CheckpointError(
            f"{where}: input_dim {n_mels} and output_dim {n_outputs}, but {features.n_mels} mel bands and "
            f"{len(vocabulary)} units; use the files of one model"
        )
    cmvn_file, is_json = _cmvn_settings(settings)
    fields, form, dynamic = _encoder_fields(settings.section("encoder_conf", {}))
    weights = TensorMap(load_tensors(file), str(file))
    kind = settings.take("decoder", None)
    decoder_conf, model_conf = settings.section("decoder_conf", {}), settings.section("model_conf", {})
    decoders = Decoders()
    if options.decoder and kind in DECODERS and any(name.startswith("decoder.") for name in weights.names()):
        decoders = read_decoders(
            kind, decoder_conf, model_conf, special_tokens,
            n_tokens=len(vocabulary), blank_id=blank_id, d_model=fields["d_model"],
        )  # fmt: skip
    settings.ignore(*_TRAINING)
    settings.finish()
    config = build_config(
        where,
        vocab_size=len(vocabulary),
        n_mels=n_mels,
        cmvn=cmvn_file is not None,
        **fields,
        **decoders.configs,
    )
    if cmvn_file is not None:
        found = _look_up(folder, cmvn_file, ("global_cmvn",))
        move_cmvn(weights, n_mels, found, is_json, where, notes)
    # Of versions before 2022, which have it without using it unless concat_after is set.
    weights.ignore(r"encoder\.encoders\.\d+\.concat_linear\..*")
    move_encoder(weights, config, form)
    weights.head("ctc.ctc_lo", blank_id)
    decoders.move(weights, blank_id)
    if len(decoders.forms) == 1 and weights.ignore(r"decoder\.right_decoder\..*"):
        notes.append("The right-to-left decoder has no blocks and was left out.")
    n_left_out = weights.ignore(r"(predictor|joint|criterion_att|lfmmi)\..*")
    if not decoders.forms:
        n_left_out += weights.ignore(r"decoder\..*")
    if n_left_out:
        what = "transducer" if decoders.forms else f"decoder ({kind})"
        notes.append(f"The {what} was left out; the rest is exported.")
    if dynamic:
        notes.append(
            "Trained with dynamic chunks: it runs with full context unless a chunk size is given"
            + (
                "."
                if config.conv_padding == "before_pointwise"
                else "; its convolutions look ahead, so it cannot stream."
            )
        )
    return build_checkpoint(
        path=path,
        config=config,
        tensors=weights.finish(),
        features=features,
        vocabulary=vocabulary,
        provenance={
            "format": "wenet",
            "file": file.name,
            "model": values.get("model", "asr_model"),
        },
        facts=SourceFacts(
            source_blank_id=blank_id,
            dynamic_chunks=dynamic,
            ctc_weight=decoders.ctc_weight,
            reverse_weight=decoders.reverse_weight,
            notes=tuple(notes),
        ),
        tokenizer_model=tokenizer_model,
    )


def _weights_file(folder: Path) -> Path:
    found = sorted(file.name for file in folder.glob("*.pt"))
    chosen = found[0] if len(found) == 1 else next((name for name in _WEIGHTS if name in found), None)
    if chosen is None:
        raise CheckpointError(f"{folder} holds {', '.join(found)}; name one of these files, not the folder")
    return inside(folder, chosen)


def _cmvn_settings(settings: Settings) -> tuple[str | None, bool]:
    """Name of the statistics file (None: no CMVN), and whether it is JSON; older settings do not nest it."""
    settings.expect("cmvn", (None, "global_cmvn"), None)
    conf = settings.section("cmvn_conf", {})
    older = settings.take("cmvn_file", None), settings.flag("is_json_cmvn", False)
    name, is_json = conf.take("cmvn_file", older[0]), conf.flag("is_json_cmvn", older[1])
    conf.finish()
    if name is not None and not isinstance(name, str):
        raise conf.refusal("cmvn_file", name, "the name of a file")
    return name, is_json


def _encoder_fields(encoder: Settings) -> tuple[dict[str, Any], BlockForm, bool]:
    """Fields of `ConformerConfig`, what else the blocks are, and whether chunks were dynamic in training."""
    d_model, n_heads = encoder.integer("output_size", 256), encoder.integer("attention_heads", 4)
    input_layer = encoder.expect("input_layer", tuple(_INPUT_LAYERS), "conv2d")
    activation = ACTIVATIONS[encoder.expect("activation_type", tuple(ACTIVATIONS), "swish")]
    fixed: dict[str, tuple[Any, ...]] = {
        "normalize_before": (True,),
        "concat_after": (False,),
        "use_cnn_module": (True,),
        "layer_norm_type": ("layer_norm",),
        "mlp_type": ("position_wise_feed_forward",),
        "head_dim": (None, d_model // n_heads if n_heads else 0),
        "conv_inner_factor": (2,),
    }
    for key, allowed in fixed.items():
        encoder.expect(key, allowed, allowed[0])
    attention = _attention_fields(encoder)
    n_kv_heads = encoder.integer("n_kv_head", None)
    if n_kv_heads is not None and (n_kv_heads < 1 or n_heads % n_kv_heads):
        raise encoder.refusal("n_kv_head", n_kv_heads, f"a divisor of attention_heads ({n_heads})")
    norm_eps, conv_norm_eps = encoder.number("norm_eps", 1e-5), encoder.number("conv_norm_eps", 1e-5)
    conv_norm = encoder.expect("cnn_module_norm", ("batch_norm", "layer_norm"), "batch_norm")
    if conv_norm == "layer_norm" and conv_norm_eps != norm_eps:
        raise encoder.refusal("conv_norm_eps", conv_norm_eps, f"norm_eps ({norm_eps}) with layer_norm")
    kernel, causal = encoder.integer("cnn_module_kernel", 15), encoder.flag("causal", False)
    dynamic, static = encoder.flag("use_dynamic_chunk", False), encoder.integer("static_chunk_size", 0)
    # Static chunks with all chunks before them, unless the chunks are dynamic (add_optional_chunk_mask).
    chunked = static > 0 and not dynamic
    fields: dict[str, Any] = {
        "d_model": d_model,
        "n_heads": n_heads,
        "n_layers": encoder.integer("num_blocks", 6),
        "ff_size": encoder.integer("linear_units", 2048),
        "activation": activation,
        "norm_eps": norm_eps,
        "conv_kernel_size": kernel,
        "conv_context": "causal" if causal else "symmetric",
        "conv_norm": conv_norm,
        "conv_padding": "before_pointwise" if causal else "after_glu",
        "subsampling": "linear" if input_layer == "linear" else "conv2d",
        "subsampling_factor": _INPUT_LAYERS[input_layer],
        "subsampling_channels": d_model,
        **attention,
        "attention_context": (-1, static - 1) if chunked else None,
        "attention_context_style": "chunked_limited" if chunked else "regular",
        "output_norm": encoder.flag("final_norm", True),
    }
    form = BlockForm(
        macaron=encoder.flag("macaron_style", True),
        n_kv_heads=n_kv_heads,
        query_bias=encoder.flag("query_bias", True),
        key_bias=encoder.flag("key_bias", True),
        value_bias=encoder.flag("value_bias", True),
        ff_bias=encoder.flag("mlp_bias", True),
        conv_bias=encoder.flag("conv_bias", True),
        batch_norm_eps=conv_norm_eps,
    )
    encoder.ignore(
        "dropout_rate", "positional_dropout_rate", "attention_dropout_rate", "use_dynamic_left_chunk",
        "positionwise_conv_kernel_size", "gradient_checkpointing", "use_sdpa", "n_expert",
        "n_expert_activated",
    )  # fmt: skip
    encoder.finish()
    return fields, form, dynamic


def _attention_fields(encoder: Settings) -> dict[str, Any]:
    """Positions: of the keys (rel_pos, absolute here), added to the input, or none and no scaling."""
    position = encoder.expect("pos_enc_layer_type", ("rel_pos", "abs_pos", "no_pos"), "rel_pos")
    needed = "rel_selfattn" if position == "rel_pos" else "selfattn"
    attention = encoder.take("selfattention_layer_type", "rel_selfattn")
    if attention != needed:
        raise encoder.refusal("selfattention_layer_type", attention, f"{needed} with {position}")
    if position == "rel_pos":
        return {"attention": "absolute_pos", "xscaling": True}
    absolute = position == "abs_pos"
    return {"attention": "no_pos", "added_positions": absolute, "xscaling": absolute}


def _vocabulary(
    settings: Settings, folder: Path, blank_id: int, where: str
) -> tuple[Vocabulary, bytes | None, Any]:
    """The vocabulary, the SentencePiece model if there is one, and the numbers of the special tokens."""
    kind = settings.expect("tokenizer", ("char", "bpe", None), None)
    conf = settings.section("tokenizer_conf", {})
    table, bpe_path = conf.take("symbol_table_path", None), conf.take("bpe_path", None)
    special_tokens = conf.take("special_tokens", None)
    conf.ignore(
        "non_lang_syms_path", "split_with_space", "connect_symbol", "is_multilingual",
        "num_languages",
    )  # fmt: skip
    conf.finish()
    path = _look_up(folder, table if isinstance(table, str) else None, UNITS_NAMES)
    if path is None:
        raise CheckpointError(f"{folder} lacks {UNITS_NAMES[0]}, the units of the model; copy it along")
    vocabulary = vocabulary_from_units(path, blank_id, kind)
    model = _look_up(folder, bpe_path, ("bpe.model",)) if isinstance(bpe_path, str) else None
    content = None if model is None else read_file(model, limit=MAX_BYTES, what="the SentencePiece model")
    return vocabulary, content, special_tokens


def _look_up(folder: Path, name: str | None, usual: tuple[str, ...]) -> Path | None:
    """Find a file by its base name, because the settings hold training paths, or by a usual name."""
    names = (*(() if name is None else (PurePosixPath(name).name,)), *usual)
    paths = (inside(folder, candidate) for candidate in names if candidate)
    return next((path for path in paths if path.is_file()), None)
