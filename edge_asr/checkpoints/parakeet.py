"""Hugging Face folders of ParakeetForCTC: NeMo's FastConformer under other names.

It reads config.json, model.safetensors (sharded too), the feature extractor's settings and the tokenizer's
tokens. transformers is not needed.
What this file does not do: load ParakeetForTDT.

Source: transformers, models/parakeet/{configuration,modeling,feature_extraction}_parakeet.py.
"""

from __future__ import annotations

from pathlib import Path

from edge_asr.checkpoints.assembly import TensorMap, build_checkpoint, build_config, build_features
from edge_asr.checkpoints.hf_folder import (
    ACTIVATIONS,
    IGNORED_SETTINGS,
    feature_extractor_settings,
    load_weights,
    tokens_from_tokenizer,
)
from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts
from edge_asr.checkpoints.nemo_encoder import move_subsampling
from edge_asr.checkpoints.registry import LoadOptions
from edge_asr.checkpoints.safe_yaml import Settings, load_json
from edge_asr.checkpoints.vocabularies import vocabulary_from_tokens
from edge_asr.model.config import ConformerConfig

_TRAINING = (
    "activation_dropout", "attention_dropout", "dropout", "dropout_positions", "layerdrop",
    "initializer_range", "max_position_embeddings", "model_type",
)  # fmt: skip


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a folder.

    Raises:
        CheckpointError: a file that is missing or damaged, or a setting that edge-asr does not have.
    """
    options.refuse_feature_preset("a Parakeet folder")
    where = f"{path.name}/config.json"
    values = load_json(path / "config.json", where)
    settings = Settings(values, where)
    encoder = settings.section("encoder_config", {})
    vocab_size, blank_id = settings.integer("vocab_size", 1025), settings.integer("pad_token_id", 1024)
    settings.ignore(
        "ctc_loss_reduction", "ctc_zero_infinity", "initializer_range", "model_type", *IGNORED_SETTINGS
    )
    settings.finish()
    n_mels = encoder.integer("num_mel_bins", 80)
    heads = encoder.integer("num_attention_heads", 8)
    hidden = encoder.integer("hidden_size", 1024)
    encoder.expect("subsampling_conv_kernel_size", (3,), 3)
    encoder.expect("subsampling_conv_stride", (2,), 2)
    encoder.expect("num_key_value_heads", (heads,), heads)
    encoder.expect("head_dim", (hidden // heads, None), None)
    bias, conv_bias = encoder.flag("attention_bias", True), encoder.flag("convolution_bias", True)
    config = build_config(
        where,
        vocab_size=vocab_size,
        n_mels=n_mels,
        n_layers=encoder.integer("num_hidden_layers", 24),
        d_model=hidden,
        n_heads=heads,
        ff_size=encoder.integer("intermediate_size", 4096),
        activation=ACTIVATIONS[encoder.expect("hidden_act", tuple(ACTIVATIONS), "silu")],
        conv_kernel_size=encoder.integer("conv_kernel_size", 9),
        subsampling="dw_striding",
        subsampling_factor=encoder.integer("subsampling_factor", 8),
        subsampling_channels=encoder.integer("subsampling_conv_channels", 256),
        xscaling=encoder.flag("scale_input", True),
    )
    encoder.ignore(*_TRAINING, *IGNORED_SETTINGS)
    encoder.finish()
    extractor = feature_extractor_settings(path, "ParakeetFeatureExtractor")
    rate = extractor.integer("sampling_rate", 16000)
    preemphasis = extractor.take("preemphasis", 0.97)
    features = build_features(
        extractor.where,
        "nemo",
        sample_rate=rate,
        n_mels=extractor.integer("feature_size", 80),
        n_fft=extractor.integer("n_fft", 512),
        win_length=extractor.integer("win_length", 400),
        hop_length=extractor.integer("hop_length", 160),
        preemphasis=0.0 if preemphasis is None else float(preemphasis),
        f_max=rate / 2,
        normalize="per_feature",
    )
    extractor.ignore("padding_side", "padding_value", "return_attention_mask", "processor_class")
    extractor.finish()
    tokens = tokens_from_tokenizer(path, vocab_size, blank_id)
    weights = TensorMap(load_weights(path), str(path))
    _move_encoder(weights, config, bias=bias, conv_bias=conv_bias)
    weights.head("ctc_head", blank_id)
    return build_checkpoint(
        path=path,
        config=config,
        tensors=weights.finish(),
        features=features,
        vocabulary=vocabulary_from_tokens(tokens, blank_id, "sentencepiece", str(path)),
        provenance={
            "format": "parakeet",
            "file": path.name,
            "transformers_version": values.get("transformers_version"),
        },
        facts=SourceFacts(source_blank_id=blank_id),
    )


def _move_encoder(weights: TensorMap, config: ConformerConfig, *, bias: bool, conv_bias: bool) -> None:
    move_subsampling(weights, config, "encoder.subsampling.layers", "encoder.subsampling")
    weights.linear("encoder.subsampling.linear", "encoder.subsampling.out")
    for layer in range(config.n_layers):
        prefix = f"encoder.layers.{layer}"
        for theirs, ours in (("1", "in"), ("2", "out")):
            source, target = f"{prefix}.feed_forward{theirs}", f"{prefix}.feed_forward_{ours}"
            weights.norm(f"{prefix}.norm_feed_forward{theirs}", f"{target}.norm")
            weights.linear(f"{source}.linear1", f"{target}.expand", bias=bias)
            weights.linear(f"{source}.linear2", f"{target}.project", bias=bias)
        weights.norm(f"{prefix}.norm_self_att", f"{prefix}.attention_norm")
        weights.norm(f"{prefix}.norm_conv", f"{prefix}.convolution.norm")
        weights.norm(f"{prefix}.norm_out", f"{prefix}.final_norm")
        source, target = f"{prefix}.self_attn", f"{prefix}.attention"
        weights.stack_linears([f"{source}.{name}_proj" for name in "qkv"], f"{target}.qkv", bias=bias)
        weights.linear(f"{source}.o_proj", f"{target}.out", bias=bias)
        weights.move(f"{source}.relative_k_proj.weight", f"{target}.position.weight")
        weights.move(f"{source}.bias_u", f"{target}.pos_bias_u")
        weights.move(f"{source}.bias_v", f"{target}.pos_bias_v")
        source, target = f"{prefix}.conv", f"{prefix}.convolution"
        weights.linear(f"{source}.pointwise_conv1", f"{target}.pointwise_in", bias=conv_bias)
        weights.convolution(f"{source}.depthwise_conv", f"{target}.depthwise", bias=conv_bias)
        weights.linear(f"{source}.pointwise_conv2", f"{target}.pointwise_out", bias=conv_bias)
        weights.batch_norm(f"{source}.norm", f"{target}.batch_norm")
