"""Hugging Face folders of Wav2Vec2ConformerForCTC, with relative, rotary or no position embeddings.

It reads config.json, model.safetensors (sharded too), the feature extractor's settings and vocab.json. Absent
biases become zeros; query, key and value become one weight; the blank (the padding token) becomes the last
output. transformers is not needed.
What this file does not do: load adapters, other wav2vec 2.0 models, phoneme tokenizers.

Source: transformers, models/wav2vec2_conformer/{configuration,modeling}_wav2vec2_conformer.py,
models/wav2vec2/{feature_extraction,tokenization}_wav2vec2.py.
"""

from __future__ import annotations

from pathlib import Path

import torch

from edge_asr.checkpoints.assembly import TensorMap, build_checkpoint, build_config, build_features
from edge_asr.checkpoints.hf_folder import (
    ACTIVATIONS,
    IGNORED_SETTINGS,
    feature_extractor_settings,
    load_weights,
)
from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts
from edge_asr.checkpoints.registry import LoadOptions
from edge_asr.checkpoints.safe_yaml import Settings, load_json
from edge_asr.checkpoints.wav2vec2_tokenizer import load_vocabulary
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.attention.rotary import rotary_frequencies
from edge_asr.model.config import ConformerConfig

_PREFIX = "wav2vec2_conformer"
_POSITIONS = {"relative": "rel_pos", "rotary": "rotary", None: "no_pos"}

#: Training, other heads, and modules that the forward pass does not run.
_UNUSED = (
    "activation_dropout", "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "feat_proj_dropout",
    "feat_quantizer_dropout", "feat_extract_dropout", "final_dropout", "conformer_conv_dropout", "layerdrop",
    "initializer_range", "apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks",
    "mask_channel_prob", "mask_channel_length", "mask_channel_min_space", "mask_channel_other",
    "mask_channel_selection", "mask_time_min_space", "mask_time_other", "mask_time_selection",
    "mask_feature_prob", "mask_feature_length", "mask_feature_min_masks", "num_codevectors_per_group",
    "num_codevector_groups", "contrastive_logits_temperature", "num_negatives", "codevector_dim",
    "proj_codevector_dim", "diversity_loss_weight", "ctc_loss_reduction", "ctc_zero_infinity",
    "use_weighted_layer_sum", "classifier_proj_size", "tdnn_dim", "tdnn_kernel", "tdnn_dilation",
    "xvector_output_dim", "adapter_kernel_size", "adapter_stride", "num_adapter_layers", "output_hidden_size",
    "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "max_source_positions",
    "do_stable_layer_norm", "freeze_feat_extract_train", "no_mask_channel_overlap", "no_mask_time_overlap",
)  # fmt: skip


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a folder.

    Raises:
        CheckpointError: a file that is missing or damaged, or a setting that edge-asr does not have.
    """
    options.refuse_feature_preset("a Wav2Vec2-Conformer folder")
    where = f"{path.name}/config.json"
    values = load_json(path / "config.json", where)
    settings = Settings(values, where)
    blank_id = settings.integer("pad_token_id", 0)
    conv_bias = settings.flag("conv_bias", False)
    config = _model_config(settings)
    features = _features(path)
    vocabulary, notes = load_vocabulary(path, config.vocab_size, blank_id)
    weights = TensorMap(load_weights(path), str(path))
    _move_waveform_stack(weights, config, conv_bias)
    _move_layers(weights, config)
    notes += _check_frequencies(weights, config, where)
    weights.norm(f"{_PREFIX}.encoder.layer_norm", "encoder.output_norm")
    weights.head("lm_head", blank_id)
    weights.ignore(rf"{_PREFIX}\.(masked_spec_embed|encoder\.pos_conv_embed\..*)")
    return build_checkpoint(
        path=path,
        config=config,
        tensors=weights.finish(),
        features=features,
        vocabulary=vocabulary,
        provenance={
            "format": "wav2vec2",
            "file": path.name,
            "transformers_version": values.get("transformers_version"),
        },
        facts=SourceFacts(
            source_blank_id=blank_id,
            notes=(
                "A clip in a padded batch gives what it gives alone; in transformers padding changes it.",
                *notes,
            ),
        ),
    )


def _model_config(settings: Settings) -> ConformerConfig:
    settings.expect("add_adapter", (False, None), False)
    settings.expect("adapter_attn_dim", (None,), None)
    channels = _sizes(settings, "conv_dim", [512] * 7)
    kernels = _sizes(settings, "conv_kernel", [10, 3, 3, 3, 3, 2, 2])
    strides = _sizes(settings, "conv_stride", [5, 2, 2, 2, 2, 2, 2])
    if not len(channels) == len(kernels) == len(strides):
        raise CheckpointError(
            f"{settings.where} has {len(channels)} conv_dim, {len(kernels)} conv_kernel and {len(strides)} "
            "conv_stride; they must be as many"
        )
    settings.expect("num_feat_extract_layers", (len(channels),), len(channels))
    factor = 1
    for stride in strides:
        factor *= stride
    names = tuple(ACTIVATIONS)
    config = build_config(
        settings.where,
        vocab_size=settings.integer("vocab_size"),
        n_mels=1,
        d_model=settings.integer("hidden_size", 768),
        n_layers=settings.integer("num_hidden_layers", 12),
        n_heads=settings.integer("num_attention_heads", 12),
        ff_size=settings.integer("intermediate_size", 3072),
        activation=ACTIVATIONS[settings.expect("hidden_act", names, "gelu")],
        conv_kernel_size=settings.integer("conv_depthwise_kernel_size", 31),
        subsampling="waveform",
        subsampling_factor=factor,
        waveform_layers=tuple(zip(channels, kernels, strides, strict=True)),
        waveform_norm=settings.expect("feat_extract_norm", ("group", "layer"), "group"),
        waveform_activation=ACTIVATIONS[settings.expect("feat_extract_activation", names, "gelu")],
        attention=_POSITIONS[settings.expect("position_embeddings_type", tuple(_POSITIONS), "relative")],
        rotary_base=settings.number("rotary_embedding_base", 10000),
        output_norm=True,
        output_norm_eps=settings.number("layer_norm_eps", 1e-5),
    )
    settings.expect("model_type", ("wav2vec2-conformer",), "wav2vec2-conformer")
    settings.ignore(*_UNUSED, *IGNORED_SETTINGS)
    settings.finish()
    return config


def _sizes(settings: Settings, key: str, default: list[int]) -> list[int]:
    value = settings.take(key, default)
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in value)
    ):
        raise settings.refusal(key, value, "a list of whole numbers of at least 1")
    return value


def _features(path: Path) -> FeatureConfig:
    extractor = feature_extractor_settings(path, "Wav2Vec2FeatureExtractor")
    extractor.expect("feature_size", (1,), 1)
    rate = extractor.integer("sampling_rate", 16000)
    normalize = extractor.flag("do_normalize", True)
    extractor.ignore(
        "padding_side", "padding_value", "return_attention_mask", "processor_class", "image_processor_type"
    )
    extractor.finish()
    return build_features(
        extractor.where,
        "waveform",
        sample_rate=rate,
        f_max=rate / 2,
        normalize="waveform" if normalize else "none",
    )


def _move_waveform_stack(weights: TensorMap, config: ConformerConfig, conv_bias: bool) -> None:
    for number in range(len(config.waveform_layers)):
        source = f"{_PREFIX}.feature_extractor.conv_layers.{number}"
        target = f"encoder.subsampling.stages.{number}"
        weights.convolution(f"{source}.conv", f"{target}.0", bias=conv_bias)
        if config.waveform_norm == "group" and number == 0:
            # The norm takes each channel's mean over time out, the bias with it. Without it silence is 0;
            # of a constant the norm would make 300 times its rounding error.
            weights.ours[f"{target}.0.bias"].zero_()
        if config.waveform_norm == "layer" or number == 0:
            weights.norm(f"{source}.layer_norm", f"{target}.1")
    weights.norm(f"{_PREFIX}.feature_projection.layer_norm", "encoder.subsampling.out_norm")
    weights.linear(f"{_PREFIX}.feature_projection.projection", "encoder.subsampling.out")


def _move_layers(weights: TensorMap, config: ConformerConfig) -> None:
    for layer in range(config.n_layers):
        prefix, ours = f"{_PREFIX}.encoder.layers.{layer}", f"encoder.layers.{layer}"
        for number, side in (("1", "in"), ("2", "out")):
            source, target = f"{prefix}.ffn{number}", f"{ours}.feed_forward_{side}"
            weights.norm(f"{source}_layer_norm", f"{target}.norm")
            weights.linear(f"{source}.intermediate_dense", f"{target}.expand")
            weights.linear(f"{source}.output_dense", f"{target}.project")
        weights.norm(f"{prefix}.self_attn_layer_norm", f"{ours}.attention_norm")
        source, target = f"{prefix}.self_attn", f"{ours}.attention"
        weights.stack_linears([f"{source}.linear_{name}" for name in "qkv"], f"{target}.qkv")
        weights.linear(f"{source}.linear_out", f"{target}.out")
        if config.attention == "rel_pos":
            weights.move(f"{source}.linear_pos.weight", f"{target}.position.weight")
            for name in ("pos_bias_u", "pos_bias_v"):
                weights.move(f"{source}.{name}", f"{target}.{name}")
        source, target = f"{prefix}.conv_module", f"{ours}.convolution"
        weights.norm(f"{source}.layer_norm", f"{target}.norm")
        weights.linear(f"{source}.pointwise_conv1", f"{target}.pointwise_in", bias=False)
        weights.convolution(f"{source}.depthwise_conv", f"{target}.depthwise", bias=False)
        weights.batch_norm(f"{source}.batch_norm", f"{target}.batch_norm")
        weights.linear(f"{source}.pointwise_conv2", f"{target}.pointwise_out", bias=False)
        weights.norm(f"{prefix}.final_layer_norm", f"{ours}.final_norm")


def _check_frequencies(weights: TensorMap, config: ConformerConfig, where: str) -> list[str]:
    """The rotary frequencies in the file, which transformers runs, are those of the base; notes on them.

    Raises:
        CheckpointError: they are others.
    """
    name = f"{_PREFIX}.encoder.embed_positions.inv_freq"
    if config.attention != "rotary" or name not in weights:
        return []
    saved, expected = (
        weights.take(name),
        rotary_frequencies(config.d_model // config.n_heads, config.rotary_base),
    )
    if saved.shape == expected.shape:
        if torch.allclose(saved, expected, rtol=1e-6, atol=0.0):
            return []
        for kind in (torch.float16, torch.bfloat16):
            if torch.equal(saved, expected.to(kind).float()):
                return [f"The rotary frequencies are saved as {kind}; they are computed again in float32."]
    raise CheckpointError(
        f"{where}.rotary_embedding_base is {config.rotary_base:g}, but the weights hold the rotary "
        f"frequencies of another base ({name}); use the settings and weights of one checkpoint"
    )
