"""A folder with the state dict of torchaudio's Conformer and a linear CTC head, and what made it as JSON.

torchaudio ships the encoder and the front end, but no CTC model and no file format. This one is the
plainest there is: `model.pt`, a state dict with the keys `conformer.*` (torchaudio's own) and `head.*`;
`config.json` with `sample_rate`, the arguments of `MelSpectrogram` and `Conformer` under `mel_spectrogram`
and `conformer`, the logarithm behind the spectrogram as `log` ({"type": "add" or "clamp", "value": ...}),
`tokens` in the order of the outputs, and `blank`. Arguments that are absent have torchaudio's defaults.

What this file does not do: support a projection or subsampling between features and encoder, or a
normalization of the features.

Source: torchaudio, models/conformer.py, transforms/_transforms.py (MelSpectrogram, MelScale).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.checkpoints.assembly import TensorMap, build_checkpoint, build_config, build_features
from edge_asr.checkpoints.espnet_features import framing_from_center
from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.native_config import SourceFacts
from edge_asr.checkpoints.registry import LoadOptions
from edge_asr.checkpoints.safe_torch import load_tensors
from edge_asr.checkpoints.safe_yaml import Settings, load_json
from edge_asr.checkpoints.vocabularies import vocabulary_from_tokens
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.config import ConformerConfig
from edge_asr.runtime.features.float32_tables import build_float32_window
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.pt"
_WINDOWS = {
    "hann_window": "hann_periodic",
    "hamming_window": "hamming_periodic",
    "blackman_window": "blackman_periodic",
    "bartlett_window": "bartlett_periodic",
}


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Load a folder.

    Raises:
        CheckpointError: a file that is missing or damaged, or a setting that edge-asr does not have.
    """
    options.refuse_feature_preset("torchaudio's Conformer")
    where = f"{path.name}/{CONFIG_NAME}"
    settings = Settings(load_json(path / CONFIG_NAME, where), where)
    features = _features(settings)
    vocabulary, blank_id = _vocabulary(settings)
    conformer = settings.section("conformer")
    settings.finish()
    config = _model_config(conformer, features, len(vocabulary))
    weights = TensorMap(load_tensors(path / WEIGHTS_NAME, f"{path.name}/{WEIGHTS_NAME}"), str(path))
    _move_layers(weights, config)
    weights.head("head", blank_id)
    group_norm = config.conv_norm == "group_norm"
    return build_checkpoint(
        path=path,
        config=config,
        tensors=weights.finish(),
        features=features,
        vocabulary=vocabulary,
        provenance={
            "format": "torchaudio",
            "file": path.name,
        },
        facts=SourceFacts(
            source_blank_id=blank_id,
            notes=("Group normalization runs over the whole clip, so the model cannot stream.",)
            if group_norm
            else (),
        ),
    )


def _features(settings: Settings) -> FeatureConfig:
    rate = settings.integer("sample_rate", 16000)
    mel = settings.section("mel_spectrogram")
    mel.expect("sample_rate", (rate,), rate)
    n_fft = mel.integer("n_fft", 400)
    win_length = mel.integer("win_length", None)
    win_length = n_fft if win_length is None else win_length
    hop_length = mel.integer("hop_length", None)
    f_max = mel.number("f_max", None)
    for name, value in (("n_fft", n_fft), ("sample_rate", rate)):
        if value % 2:
            # torchaudio's mel filters then stand on a grid that is not the transform's.
            raise mel.refusal(name, value, "an even number")
    power = mel.number("power", 2.0)
    if power not in (1, 2):
        raise mel.refusal("power", power, "2 (power) or 1 (magnitude)")
    mel_scale = mel.expect("mel_scale", ("htk", "slaney"), "htk")
    mel_norm = mel.expect("norm", (None, "slaney"), None)
    window = _window(mel)
    framing = framing_from_center(mel, n_fft, win_length)
    if mel.expect("pad_mode", ("reflect", "constant"), "reflect") == "constant" and framing != "snip_edges":
        framing = "center_zero_end"
    scale = _input_scale(mel, n_fft, win_length, window)
    mel.expect("pad", (0,), 0)
    n_mels, f_min = mel.integer("n_mels", 128), mel.number("f_min", 0.0)
    mel.ignore("onesided")
    mel.finish()
    log = settings.section("log")
    guard, guard_value = log.expect("type", ("add", "clamp")), log.number("value")
    log.finish()
    return build_features(
        mel.where,
        "torchaudio",
        sample_rate=rate,
        n_mels=n_mels,
        n_fft=n_fft,
        win_length=win_length,
        hop_length=win_length // 2 if hop_length is None else hop_length,
        window=window,
        framing=framing,
        input_scale=scale,
        power=float(power),
        mel_scale=mel_scale,
        mel_norm="none" if mel_norm is None else mel_norm,
        f_min=float(f_min),
        f_max=float(rate // 2 if f_max is None else f_max),
        log_guard=guard,
        log_guard_value=float(guard_value),
    )


def _window(mel: Settings) -> str:
    name = mel.expect("window_fn", tuple(_WINDOWS), "hann_window")
    wkwargs = mel.section("wkwargs", {})
    periodic = wkwargs.flag("periodic", True)
    wkwargs.finish()
    return _WINDOWS[name] if periodic else _WINDOWS[name].removesuffix("_periodic")


def _input_scale(mel: Settings, n_fft: int, win_length: int, window: str) -> float:
    """Apply the divisor of `normalized` to the samples instead of the spectrum."""
    normalized = mel.expect("normalized", (False, True, "window", "frame_length"), False)
    if normalized is False:
        return 1.0
    if normalized == "frame_length":
        return float(n_fft**-0.5)
    return float(np.square(build_float32_window(window, win_length)).sum() ** -0.5)


def _vocabulary(settings: Settings) -> tuple[Vocabulary, int]:
    tokens: Any = settings.take("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
        raise settings.refusal("tokens", tokens, "a list of texts in the order of the outputs")
    blank_id = settings.integer("blank")
    delimiter = settings.take("word_delimiter", None)
    if delimiter is not None and not isinstance(delimiter, str):
        raise settings.refusal("word_delimiter", delimiter, "a token, or null")
    spoken = [WORD_BOUNDARY if token == delimiter else token for token in tokens]
    try:
        vocabulary = vocabulary_from_tokens(spoken, blank_id, "char", settings.where)
    except CheckpointError:
        # Pieces of several characters, or repeated ones.
        vocabulary = vocabulary_from_tokens(spoken, blank_id, "sentencepiece", settings.where)
    return vocabulary, blank_id


def _model_config(conformer: Settings, features: FeatureConfig, vocab_size: int) -> ConformerConfig:
    input_dim = conformer.integer("input_dim")
    if input_dim != features.n_mels:
        raise conformer.refusal(
            "input_dim",
            input_dim,
            f"as many as there are mel bands ({features.n_mels}): nothing lies between features and encoder",
        )
    kernel = conformer.integer("depthwise_conv_kernel_size")
    group_norm = conformer.flag("use_group_norm", False)
    convolution_first = conformer.flag("convolution_first", False)
    config = build_config(
        conformer.where,
        vocab_size=vocab_size,
        n_mels=input_dim,
        d_model=input_dim,
        n_layers=conformer.integer("num_layers"),
        n_heads=conformer.integer("num_heads"),
        ff_size=conformer.integer("ffn_dim"),
        conv_kernel_size=kernel,
        conv_norm="group_norm" if group_norm else "batch_norm",
        block_order="convolution_first" if convolution_first else "attention_first",
        subsampling="none",
        subsampling_factor=1,
        attention="no_pos",
    )
    conformer.ignore("dropout")
    conformer.finish()
    return config


def _move_layers(weights: TensorMap, config: ConformerConfig) -> None:
    for layer in range(config.n_layers):
        prefix, ours = f"conformer.conformer_layers.{layer}", f"encoder.layers.{layer}"
        for number, side in (("1", "in"), ("2", "out")):
            source, target = f"{prefix}.ffn{number}.sequential", f"{ours}.feed_forward_{side}"
            weights.norm(f"{source}.0", f"{target}.norm")
            weights.linear(f"{source}.1", f"{target}.expand")
            weights.linear(f"{source}.4", f"{target}.project")
        weights.norm(f"{prefix}.self_attn_layer_norm", f"{ours}.attention_norm")
        for kind in ("weight", "bias"):
            weights.move(f"{prefix}.self_attn.in_proj_{kind}", f"{ours}.attention.qkv.{kind}")
        weights.linear(f"{prefix}.self_attn.out_proj", f"{ours}.attention.out")
        source, target = f"{prefix}.conv_module", f"{ours}.convolution"
        weights.norm(f"{source}.layer_norm", f"{target}.norm")
        weights.linear(f"{source}.sequential.0", f"{target}.pointwise_in")
        weights.convolution(f"{source}.sequential.2", f"{target}.depthwise")
        if config.conv_norm == "group_norm":
            weights.norm(f"{source}.sequential.3", f"{target}.group_norm")
        else:
            weights.batch_norm(f"{source}.sequential.3", f"{target}.batch_norm")
        weights.linear(f"{source}.sequential.5", f"{target}.pointwise_out")
        weights.norm(f"{prefix}.final_layer_norm", f"{ours}.final_norm")
