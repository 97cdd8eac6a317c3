"""Small `.nemo` files written by these tests, for settings that no golden fixture has.

The configuration is that of a golden fixture with changes; weights are random, under NeMo's names.
"""

from __future__ import annotations

import copy
import io
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from edge_asr.checkpoints import Checkpoint, load_any

CONFIG: dict[str, Any] = {
    "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
    "nemo_version": "3.0.0",
    "sample_rate": 16000,
    "preprocessor": {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000,
        "normalize": "per_feature",
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": 16,
        "n_fft": 512,
        "log": True,
        "frame_splicing": 1,
        "dither": 1e-5,
        "pad_to": 16,
    },
    "encoder": {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": 16,
        "feat_out": -1,
        "n_layers": 2,
        "d_model": 12,
        "subsampling": "dw_striding",
        "subsampling_factor": 4,
        "subsampling_conv_channels": 6,
        "ff_expansion_factor": 2,
        "self_attention_model": "rel_pos",
        "n_heads": 3,
        "att_context_size": [-1, -1],
        "xscaling": False,
        "conv_kernel_size": 5,
    },
    "decoder": {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": 12,
        "num_classes": 4,
        "vocabulary": [" ", "a", "b", "c"],
    },
}


def changed(**sections: Any) -> dict[str, Any]:
    """`CONFIG` with the keys of sections replaced; a section that is no mapping is replaced whole."""
    config = copy.deepcopy(CONFIG)
    for name, changes in sections.items():
        if isinstance(changes, dict) and isinstance(config.get(name), dict):
            config[name].update(changes)
        else:
            config[name] = changes
    return config


def random_weights(config: dict[str, Any], *, head: str = "decoder") -> dict[str, Tensor]:
    """NeMo's state dict for a configuration (its names and shapes written down from NeMo's modules)."""
    encoder = {"use_bias": True, "causal_downsampling": False, **config["encoder"]}
    d, generator = encoder["d_model"], torch.Generator().manual_seed(1)
    channels = encoder["subsampling_conv_channels"]
    weights: dict[str, Tensor] = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2.0 / fan_in) ** 0.5
        if bias:
            weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    n_stages = encoder["subsampling_factor"].bit_length() - 1
    add("encoder.pre_encode.conv.0", channels, 1, 3, 3)
    for stage in range(1, n_stages):
        if encoder["subsampling"] == "striding":
            add(f"encoder.pre_encode.conv.{2 * stage}", channels, channels, 3, 3)
        else:
            add(f"encoder.pre_encode.conv.{3 * stage - 1}", channels, 1, 3, 3)
            add(f"encoder.pre_encode.conv.{3 * stage}", channels, channels, 1, 1)
    bands = encoder["feat_in"]
    for _ in range(n_stages):
        bands = bands // 2 + 1 if encoder["causal_downsampling"] else (bands - 1) // 2 + 1
    add("encoder.pre_encode.out", d, channels * bands)
    for layer in range(encoder["n_layers"]):
        prefix = f"encoder.layers.{layer}"
        bias, inner = encoder["use_bias"], d * encoder["ff_expansion_factor"]
        for norm in ("feed_forward1", "feed_forward2", "self_att", "conv", "out"):
            add(f"{prefix}.norm_{norm}", d)
        for number in (1, 2):
            add(f"{prefix}.feed_forward{number}.linear1", inner, d, bias=bias)
            add(f"{prefix}.feed_forward{number}.linear2", d, inner, bias=bias)
        for part in ("q", "k", "v", "out"):
            add(f"{prefix}.self_attn.linear_{part}", d, d, bias=bias)
        add(f"{prefix}.self_attn.linear_pos", d, d, bias=False)
        for part in "uv":
            weights[f"{prefix}.self_attn.pos_bias_{part}"] = torch.randn(
                encoder["n_heads"], d // encoder["n_heads"], generator=generator
            )
        if encoder.get("global_attn_separate"):
            for part in "qkv":
                add(f"{prefix}.self_attn.global_{part}", d, d, bias=bias)
        add(f"{prefix}.conv.pointwise_conv1", 2 * d, d, 1, bias=bias)
        add(f"{prefix}.conv.depthwise_conv", d, 1, encoder["conv_kernel_size"], bias=bias)
        add(f"{prefix}.conv.pointwise_conv2", d, d, 1, bias=bias)
        add(f"{prefix}.conv.batch_norm", d)
        if encoder.get("conv_norm_type", "batch_norm") == "batch_norm":
            weights[f"{prefix}.conv.batch_norm.running_mean"] = 0.3 * torch.randn(d, generator=generator)
            weights[f"{prefix}.conv.batch_norm.running_var"] = 0.5 + torch.rand(d, generator=generator)
            weights[f"{prefix}.conv.batch_norm.num_batches_tracked"] = torch.tensor(7)
    if encoder.get("feat_out", -1) > 0:
        add("encoder.out_proj", encoder["feat_out"], d)
    vocabulary = config.get("aux_ctc", config)["decoder"]["vocabulary"]
    add(f"{head}.decoder_layers.0", len(vocabulary) + 1, max(encoder.get("feat_out", -1), 0) or d, 1)
    return weights


def write_nemo(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor] | None = None,
    *,
    files: dict[str, bytes] | None = None,
    mode: str = "w",
) -> Path:
    """A `.nemo` file; `files` are further members by name, `mode` "w:gz" is that of old versions."""
    buffer = io.BytesIO()
    torch.save(random_weights(config) if weights is None else weights, buffer)
    members = {
        "./model_config.yaml": yaml.safe_dump(config, allow_unicode=True, sort_keys=False).encode(),
        "./model_weights.ckpt": buffer.getvalue(),
        **(files or {}),
    }
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def load(tmp_path: Path, config: dict[str, Any], **options: Any) -> Checkpoint:
    """The checkpoint of a `.nemo` file with this configuration; options as for `write_nemo`."""
    return load_any(write_nemo(tmp_path / "model.nemo", config, **options))
