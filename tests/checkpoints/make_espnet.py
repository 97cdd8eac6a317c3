"""Random ESPnet and WeNet checkpoints, and their encoders for one clip, written out from the formulas.

`plain_log_probs` takes the original's tensors by their names and knows nothing of our model or loaders.
Sources: espnet/nets/pytorch_backend/conformer/{encoder_layer,convolution}.py and transformer/{attention,
embedding,subsampling}.py; the files of the same names in wenet/models/transformer.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

N_MELS, D, HEADS, FF, LAYERS, KERNEL = 31, 12, 3, 20, 2, 5
STAGES = {
    "conv2d": ((3, 2), (3, 2)),
    "conv2d1": ((3, 1), (3, 1)),
    "conv2d2": ((3, 2), (3, 1)),
    "conv2d6": ((3, 2), (5, 3)),
    "conv2d8": ((3, 2), (3, 2), (3, 2)),
}
ACTIVATIONS = {
    "swish": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "hardtanh": lambda x: x.clamp(-1.0, 1.0),
    "selu": F.selu,
}
TOKENS = ("<blank>", "<unk>", "▁A", "B", "▁", "C", "<sos/eos>")

ESPNET: dict[str, Any] = {
    "token_list": list(TOKENS),
    "token_type": "bpe",
    "model": "espnet",
    "model_conf": {"ctc_weight": 0.3},
    "frontend": "default",
    "frontend_conf": {"fs": "16k", "n_mels": N_MELS, "hop_length": 160},
    "normalize": "utterance_mvn",
    "normalize_conf": {},
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": D,
        "attention_heads": HEADS,
        "linear_units": FF,
        "num_blocks": LAYERS,
        "cnn_module_kernel": KERNEL,
        "macaron_style": True,
    },
    "decoder": "rnn",
    "version": "202511",
}
WENET: dict[str, Any] = {
    "input_dim": N_MELS,
    "output_dim": len(TOKENS),
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": D,
        "attention_heads": HEADS,
        "linear_units": FF,
        "num_blocks": LAYERS,
        "cnn_module_kernel": KERNEL,
    },
    "decoder": "sanm_decoder",
    "dataset_conf": {"fbank_conf": {"num_mel_bins": N_MELS, "dither": 1.0}},
    "cmvn": None,
    "tokenizer": "bpe",
    "tokenizer_conf": {"symbol_table_path": "data/units.txt"},
}


def changed(base: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A copy with sections updated (mappings) or replaced (other values)."""
    config = copy.deepcopy(base)
    for name, value in sections.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            config[name].update(value)
        else:
            config[name] = value
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """What `plain_log_probs` and `random_weights` need to know of a model.

    Attributes:
        attention: "legacy", "latest" (both ESPnet), "wenet", or "plain" (abs_pos or no_pos of both).
        added: whether sinusoids of the positions are added to the input, as abs_pos does.
        scaled: whether the input is multiplied by sqrt(D).
        wenet_names: WeNet's names of the layer behind the convolutions, and its stored table.
        heads, kv_heads: of queries, and of keys and values.
        table: rows of ESPnet's legacy table.
        causal: WeNet's causal convolution, padded before the first pointwise one.
        missing_biases: parts of names whose linear layers and convolutions have no bias.
        visible: which keys a query sees, bool (T, T); None is all.
    """

    attention: str = "latest"
    added: bool = False
    scaled: bool = True
    wenet_names: bool = False
    heads: int = HEADS
    kv_heads: int | None = None
    input_layer: str = "conv2d"
    activation: str = "swish"
    kernel: int = KERNEL
    macaron: bool = True
    causal: bool = False
    conv_norm: str = "batch_norm"
    eps: float = 1e-5
    conv_eps: float = 1e-5
    table: int = 5000
    after_norm: bool = True
    missing_biases: tuple[str, ...] = ()
    chunk: int | None = None
    left_chunks: int | None = None


def random_weights(plain: Plain, seed: int = 0) -> dict[str, Tensor]:
    """Tensors by the originals' names, none of them at its default."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) * (1.5 / fan_in) ** 0.5
        if not any(part in name for part in plain.missing_biases):
            weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    def norm(name: str, statistics: bool = False) -> None:
        weights[f"{name}.weight"] = 1.0 + 0.3 * torch.randn(D, generator=generator)
        weights[f"{name}.bias"] = 0.3 * torch.randn(D, generator=generator)
        if statistics:
            weights[f"{name}.running_mean"] = 0.3 * torch.randn(D, generator=generator)
            weights[f"{name}.running_var"] = 0.5 + torch.rand(D, generator=generator)
            weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    wenet = plain.attention == "wenet" or plain.wenet_names
    bands = N_MELS
    stages = () if plain.input_layer == "linear" else STAGES[plain.input_layer]
    for number, (kernel, stride) in enumerate(stages):
        layer(f"encoder.embed.conv.{2 * number}", D, D if number else 1, kernel, kernel)
        bands = (bands - kernel) // stride + 1
    if plain.input_layer == "linear":
        place = "encoder.embed.out." if wenet else "encoder.embed."
        layer(f"{place}0", D, N_MELS)
        norm(f"{place}1")
    else:
        name = "linear" if wenet and plain.input_layer != "conv2d" else "out.0"
        layer(f"encoder.embed.{name}", D, D * bands)
    for number in range(LAYERS):
        block = f"encoder.encoders.{number}"
        for name in ("feed_forward", "feed_forward_macaron")[: 2 if plain.macaron else 1]:
            layer(f"{block}.{name}.w_1", FF, D)
            layer(f"{block}.{name}.w_2", D, FF)
            norm(f"{block}.{name.replace('feed_forward', 'norm_ff')}")
        for name in ("norm_mha", "norm_conv", "norm_final"):
            norm(f"{block}.{name}")
        of_keys = D // plain.heads * (plain.kv_heads or plain.heads)
        for part, size in (("q", D), ("k", of_keys), ("v", of_keys), ("out", D)):
            layer(f"{block}.self_attn.linear_{part}", size, D)
        if plain.attention != "plain":
            weights[f"{block}.self_attn.linear_pos.weight"] = torch.randn(D, D, generator=generator) * 0.3
            for name in ("u", "v"):
                weights[f"{block}.self_attn.pos_bias_{name}"] = torch.randn(
                    plain.heads, D // plain.heads, generator=generator
                )
        layer(f"{block}.conv_module.pointwise_conv1", 2 * D, D, 1)
        layer(f"{block}.conv_module.depthwise_conv", D, 1, plain.kernel)
        layer(f"{block}.conv_module.pointwise_conv2", D, D, 1)
        norm(f"{block}.conv_module.norm", plain.conv_norm == "batch_norm")
    norm("encoder.after_norm")
    layer("ctc.ctc_lo", len(TOKENS), D)
    weights["decoder.embed.weight"] = torch.randn(len(TOKENS), 4, generator=generator)  # of the kind above
    if wenet:
        weights["encoder.embed.pos_enc.pe"] = sinusoids(range(50))[None]
    return weights


def sinusoids(positions: Any) -> Tensor:
    """(n, D) of sin and cos, interleaved."""
    position = torch.tensor([float(p) for p in positions])[:, None]
    frequency = torch.exp(torch.arange(0, D, 2, dtype=torch.float32) * -(math.log(10000.0) / D))
    table = torch.zeros(len(position), D)
    table[:, 0::2], table[:, 1::2] = torch.sin(position * frequency), torch.cos(position * frequency)
    return table


def plain_log_probs(plain: Plain, w: dict[str, Tensor], features: Tensor) -> Tensor:
    """Log-probs (T', V) of one clip (T, N_MELS) in the original's order of outputs."""
    act = ACTIVATIONS[plain.activation]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"].flatten(1), w.get(f"{name}.bias"))

    def norm(name: str, x: Tensor, eps: float = plain.eps) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    if plain.input_layer == "linear":
        place = "encoder.embed.out." if plain.attention == "wenet" or plain.wenet_names else "encoder.embed."
        x = norm(f"{place}1", linear(f"{place}0", features), 1e-5)
    else:
        x = features[None, None]
        for number, (_, stride) in enumerate(STAGES[plain.input_layer]):
            name = f"encoder.embed.conv.{2 * number}"
            x = F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride))
        x = x[0].permute(1, 0, 2).flatten(1)  # (T', C * F)
        out = "encoder.embed.linear" if "encoder.embed.linear.weight" in w else "encoder.embed.out.0"
        x = linear(out, x)
    n = len(x)
    x = x * math.sqrt(D) if plain.scaled else x
    x = x + sinusoids(range(n)) if plain.added else x
    for number in range(LAYERS):
        block = f"encoder.encoders.{number}"

        def feed_forward(name: str, x: Tensor, block: str = block) -> Tensor:
            return linear(f"{block}.{name}.w_2", act(linear(f"{block}.{name}.w_1", x)))

        half = 0.5 if plain.macaron else 1.0
        if plain.macaron:
            x = x + half * feed_forward("feed_forward_macaron", norm(f"{block}.norm_ff_macaron", x))
        x = x + _attention(plain, w, f"{block}.self_attn", norm(f"{block}.norm_mha", x), linear)
        y = norm(f"{block}.norm_conv", x)
        if plain.causal:
            y = F.pad(y, (0, 0, plain.kernel - 1, 0))
        y = F.glu(linear(f"{block}.conv_module.pointwise_conv1", y), dim=-1).T[None]
        depthwise = f"{block}.conv_module.depthwise_conv"
        padding = 0 if plain.causal else (plain.kernel - 1) // 2
        y = F.conv1d(y, w[f"{depthwise}.weight"], w.get(f"{depthwise}.bias"), padding=padding, groups=D)
        name = f"{block}.conv_module.norm"
        if plain.conv_norm == "batch_norm":
            mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
            y = F.batch_norm(y, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=plain.conv_eps)[0].T
        else:
            y = norm(name, y[0].T, plain.conv_eps)
        x = x + linear(f"{block}.conv_module.pointwise_conv2", act(y))
        x = x + half * feed_forward("feed_forward", norm(f"{block}.norm_ff", x))
        x = norm(f"{block}.norm_final", x)
    assert len(x) == n
    if plain.after_norm:
        x = norm("encoder.after_norm", x)
    return torch.log_softmax(linear("ctc.ctc_lo", x), dim=-1)


def _attention(plain: Plain, w: dict[str, Tensor], name: str, x: Tensor, linear: Any) -> Tensor:
    n, n_heads, d = len(x), plain.heads, D // plain.heads
    q, k, v = (linear(f"{name}.linear_{part}", x).reshape(n, -1, d).transpose(0, 1) for part in "qkv")
    if plain.kv_heads is not None:
        served = [head * plain.kv_heads // n_heads for head in range(n_heads)]
        k, v = k[served], v[served]
    if plain.attention == "plain":
        u, bd = torch.zeros(n_heads, 1, d), torch.zeros(n_heads, n, n)
    else:
        u, bd = w[f"{name}.pos_bias_u"][:, None], _positional_scores(plain, w, name, q, linear)
    scores = ((q + u) @ k.transpose(1, 2) + bd) / math.sqrt(d)
    if plain.chunk is not None:
        for i in range(n):
            for j in range(n):
                behind = i // plain.chunk - j // plain.chunk
                if behind < 0 or (plain.left_chunks is not None and behind > plain.left_chunks):
                    scores[:, i, j] = -math.inf
    context = torch.softmax(scores, dim=-1) @ v
    return linear(f"{name}.linear_out", context.transpose(0, 1).reshape(n, D))


def _positional_scores(plain: Plain, w: dict[str, Tensor], name: str, q: Tensor, linear: Any) -> Tensor:
    """(heads, n, n)."""
    n_heads, n, d = q.shape
    bias_v = w[f"{name}.pos_bias_v"][:, None]
    if plain.attention == "legacy":
        rows = max(plain.table, n)
        positions: Any = range(rows - 1, rows - 1 - n, -1)
    else:
        positions = range(n) if plain.attention == "wenet" else range(n - 1, -n, -1)
    p = linear(f"{name}.linear_pos", sinusoids(positions)).reshape(-1, n_heads, d).transpose(0, 1)
    bd = (q + bias_v) @ p.transpose(1, 2)
    if plain.attention == "latest":
        bd = torch.stack([bd[:, i, n - 1 - i : 2 * n - 1 - i] for i in range(n)], dim=1)
    elif plain.attention == "legacy":
        bd = torch.cat((torch.zeros(n_heads, n, 1), bd), dim=-1).reshape(n_heads, n + 1, n)[:, 1:]
    return bd


def write_espnet(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """An experiment's folder; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    torch.save(weights, folder / "valid.acc.ave.pth")
    return folder


def write_wenet(
    folder: Path, config: dict[str, Any], weights: dict[str, Tensor], tokens: tuple[str, ...] = TOKENS
) -> Path:
    """A model's folder; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    lines = "".join(f"{token} {i}\n" for i, token in enumerate(tokens))
    (folder / "units.txt").write_text(lines, encoding="utf-8")
    torch.save(weights, folder / "final.pt")
    return folder


def clips(lengths: tuple[int, ...]) -> list[Tensor]:
    """Random features (T, N_MELS) of these lengths."""
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(n, N_MELS, generator=generator) for n in lengths]


def statistics(n_mels: int = N_MELS) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Sums, sums of squares and frames of made-up training features."""
    generator = np.random.default_rng(5)
    features = generator.normal(-3.0, 2.0, (400, n_mels))
    return features.sum(0), (features**2).sum(0), len(features)
