"""Wav2Vec2-Conformer: golden fixtures, other settings against the network written out, files, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_checks import check_fixture, golden_folder
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from edge_asr.checkpoints import Checkpoint, LoadOptions, find_loader, load_any
from edge_asr.checkpoints.vocabularies import original_order
from edge_asr.errors import CheckpointError
from edge_asr.runtime.features.extractor import FeatureExtractor

FIXTURES = ("hf-wav2vec2conformer-relative", "hf-wav2vec2conformer-rotary")
D, HEADS, FF, LAYERS, KERNEL = 24, 3, 20, 2, 5
TOKENS = {"A": 0, "B": 1, "<pad>": 2, "|": 3, "<unk>": 4}
CONFIG: dict[str, Any] = {
    "architectures": ["Wav2Vec2ConformerForCTC"],
    "model_type": "wav2vec2-conformer",
    "vocab_size": 5,
    "pad_token_id": 2,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FF,
    "hidden_act": "gelu",
    "conv_depthwise_kernel_size": KERNEL,
    "conv_dim": [6, 8, 10],
    "conv_kernel": [7, 2, 1],
    "conv_stride": [3, 4, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "layer_norm_eps": 1e-3,
    "position_embeddings_type": "relative",
    "rotary_embedding_base": 300,
    "max_source_positions": 4,
    "num_conv_pos_embeddings": 4,
    "hidden_dropout": 0.1,
}
EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "do_normalize": True}
TOKENIZER: dict[str, Any] = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|"}
P = "wav2vec2_conformer"


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_outputs(golden_dir: Path, name: str) -> None:
    check_fixture(golden_folder(golden_dir, name))


@pytest.mark.slow
def test_golden_outputs_through_the_runtime(golden_dir: Path, golden_bundle: Callable[[str], Path]) -> None:
    check_fixture(
        golden_folder(golden_dir, "hf-wav2vec2conformer-rotary"), golden_bundle("hf-wav2vec2conformer-rotary")
    )


def random_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors under transformers' names, the unused ones too, nothing at its default."""
    generator = torch.Generator().manual_seed(5)
    weights: dict[str, Tensor] = {}

    def matrix(name: str, *shape: int) -> None:
        scale = (1.5 / np.prod(shape[1:])) ** 0.5
        weights[name] = torch.randn(*shape, generator=generator) * scale

    def vector(name: str, size: int, base: float = 0.0) -> None:
        weights[name] = base + 0.3 * torch.randn(size, generator=generator)

    def norm(name: str, size: int) -> None:
        vector(f"{name}.weight", size, 1.0)
        vector(f"{name}.bias", size)

    def linear(name: str, n_out: int, n_in: int) -> None:
        matrix(f"{name}.weight", n_out, n_in)
        vector(f"{name}.bias", n_out)

    n_in = 1
    for number, (channels, kernel) in enumerate(zip(config["conv_dim"], config["conv_kernel"], strict=True)):
        name = f"{P}.feature_extractor.conv_layers.{number}"
        matrix(f"{name}.conv.weight", channels, n_in, kernel)
        if config["conv_bias"]:
            vector(f"{name}.conv.bias", channels)
        if config["feat_extract_norm"] == "layer" or number == 0:
            norm(f"{name}.layer_norm", channels)
        n_in = channels
    norm(f"{P}.feature_projection.layer_norm", n_in)
    linear(f"{P}.feature_projection.projection", D, n_in)
    vector(f"{P}.masked_spec_embed", D)
    matrix(f"{P}.encoder.pos_conv_embed.conv.weight_v", D, 6, 4)
    matrix(f"{P}.encoder.pos_conv_embed.conv.weight_g", 1, 1, 4)
    vector(f"{P}.encoder.pos_conv_embed.conv.bias", D)
    norm(f"{P}.encoder.layer_norm", D)
    for layer in range(LAYERS):
        p = f"{P}.encoder.layers.{layer}"
        for name in ("ffn1", "ffn2"):
            norm(f"{p}.{name}_layer_norm", D)
            linear(f"{p}.{name}.intermediate_dense", FF, D)
            linear(f"{p}.{name}.output_dense", D, FF)
        norm(f"{p}.self_attn_layer_norm", D)
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            linear(f"{p}.self_attn.{name}", D, D)
        if config["position_embeddings_type"] == "relative":
            matrix(f"{p}.self_attn.linear_pos.weight", D, D)
            matrix(f"{p}.self_attn.pos_bias_u", HEADS, D // HEADS)
            matrix(f"{p}.self_attn.pos_bias_v", HEADS, D // HEADS)
        norm(f"{p}.conv_module.layer_norm", D)
        matrix(f"{p}.conv_module.pointwise_conv1.weight", 2 * D, D, 1)
        matrix(f"{p}.conv_module.depthwise_conv.weight", D, 1, KERNEL)
        norm(f"{p}.conv_module.batch_norm", D)
        vector(f"{p}.conv_module.batch_norm.running_mean", D)
        weights[f"{p}.conv_module.batch_norm.running_var"] = torch.rand(D, generator=generator) + 0.5
        matrix(f"{p}.conv_module.pointwise_conv2.weight", D, D, 1)
        norm(f"{p}.final_layer_norm", D)
    matrix("lm_head.weight", 5, D)
    weights["lm_head.weight"] *= 3
    vector("lm_head.bias", 5)
    return weights


def write(
    folder: Path,
    config: dict[str, Any],
    *,
    weights: dict[str, Tensor] | None = None,
    extractor: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    tokens: dict[str, Any] | None = None,
) -> Path:
    """The folder, written as transformers 4 does."""
    folder.mkdir(exist_ok=True)
    for name, content in (
        ("config.json", config),
        ("preprocessor_config.json", EXTRACTOR if extractor is None else extractor),
        ("tokenizer_config.json", TOKENIZER if tokenizer is None else tokenizer),
        ("vocab.json", TOKENS if tokens is None else tokens),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    save_file(random_weights(config) if weights is None else weights, folder / "model.safetensors")
    return folder


def load(tmp_path: Path, config: dict[str, Any] = CONFIG, **files: Any) -> Checkpoint:
    return load_any(write(tmp_path / "model", config, **files))


def plain_log_probs(config: dict[str, Any], w: dict[str, Tensor], samples: Tensor) -> Tensor:
    """One clip (S,) through the network as the papers have it: no mask, no shift, positions one by one."""
    d = D // HEADS
    kind = config["position_embeddings_type"]

    def norm(name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def activate(x: Tensor) -> Tensor:
        return {"gelu": F.gelu, "swish": F.silu, "relu": F.relu}[config["hidden_act"]](x)

    def rotate(x: Tensor) -> Tensor:
        # Channels c and c + d / 2 of a head as one complex number, turned by position * frequency.
        heads = x.reshape(-1, HEADS, d).to(torch.float64)
        numbers = torch.complex(heads[..., : d // 2], heads[..., d // 2 :])
        frequency = config["rotary_embedding_base"] ** (-2.0 * torch.arange(d // 2, dtype=torch.float64) / d)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
        numbers = numbers * torch.polar(torch.ones_like(angle), angle)[:, None, :]
        return torch.cat((numbers.real, numbers.imag), dim=-1).to(x.dtype).reshape(len(x), D)

    def attention(p: str, x: Tensor) -> Tensor:
        x = norm(f"{p}.self_attn_layer_norm", x)
        a = f"{p}.self_attn"
        turned = rotate(x) if kind == "rotary" else x
        q = linear(f"{a}.linear_q", turned).reshape(-1, HEADS, d)
        k = linear(f"{a}.linear_k", turned).reshape(-1, HEADS, d)
        v = linear(f"{a}.linear_v", x).reshape(-1, HEADS, d)
        scores = torch.einsum("ihd,jhd->hij", q, k)
        if kind == "relative":
            distance = torch.arange(len(x))[:, None] - torch.arange(len(x))[None, :]
            wave = torch.arange(0, D, 2) / D
            angle = distance[..., None] * 10000.0 ** (-wave)
            table = torch.stack((angle.sin(), angle.cos()), dim=-1).reshape(len(x), len(x), D)
            r = F.linear(table, w[f"{a}.linear_pos.weight"]).reshape(len(x), len(x), HEADS, d)
            scores = torch.einsum("ihd,jhd->hij", q + w[f"{a}.pos_bias_u"], k)
            scores = scores + torch.einsum("ihd,ijhd->hij", q + w[f"{a}.pos_bias_v"], r)
        context = torch.einsum("hij,jhd->ihd", F.softmax(scores / d**0.5, dim=-1), v)
        return linear(f"{a}.linear_out", context.reshape(len(x), D))

    def convolution(p: str, x: Tensor) -> Tensor:
        c = f"{p}.conv_module"
        y = F.glu(F.conv1d(norm(f"{c}.layer_norm", x).T[None], w[f"{c}.pointwise_conv1.weight"]), dim=1)
        y = F.conv1d(y, w[f"{c}.depthwise_conv.weight"], padding=KERNEL // 2, groups=D)
        b = f"{c}.batch_norm"
        y = F.batch_norm(y, w[f"{b}.running_mean"], w[f"{b}.running_var"], w[f"{b}.weight"], w[f"{b}.bias"])
        return F.conv1d(activate(y), w[f"{c}.pointwise_conv2.weight"])[0].T

    x = samples[None, None]
    for number, stride in enumerate(config["conv_stride"]):
        name = f"{P}.feature_extractor.conv_layers.{number}"
        x = F.conv1d(x, w[f"{name}.conv.weight"], w.get(f"{name}.conv.bias"), stride=stride)
        if config["feat_extract_norm"] == "layer":
            x = norm(f"{name}.layer_norm", x.transpose(1, 2)).transpose(1, 2)
        elif number == 0:
            x = F.group_norm(x, x.shape[1], w[f"{name}.layer_norm.weight"], w[f"{name}.layer_norm.bias"])
        x = F.relu(x) if config.get("feat_extract_activation") == "relu" else F.gelu(x)
    eps = config["layer_norm_eps"]
    x = linear(f"{P}.feature_projection.projection", norm(f"{P}.feature_projection.layer_norm", x[0].T, eps))
    for layer in range(LAYERS):
        p = f"{P}.encoder.layers.{layer}"
        for part in ("ffn1", "attention", "convolution", "ffn2"):
            if part in ("attention", "convolution"):
                x = x + (attention if part == "attention" else convolution)(p, x)
            else:
                hidden = activate(linear(f"{p}.{part}.intermediate_dense", norm(f"{p}.{part}_layer_norm", x)))
                x = x + 0.5 * linear(f"{p}.{part}.output_dense", hidden)
        x = norm(f"{p}.final_layer_norm", x)
    return F.log_softmax(linear("lm_head", norm(f"{P}.encoder.layer_norm", x, eps)), dim=-1)


VARIANTS: dict[str, dict[str, Any]] = {
    "layer, relative": {},
    "layer, rotary": {"position_embeddings_type": "rotary", "hidden_act": "swish"},
    "group, relative, no biases": {"feat_extract_norm": "group", "conv_bias": False},
    "group, rotary": {"feat_extract_norm": "group", "position_embeddings_type": "rotary"},
    "group, no positions, relu": {
        "feat_extract_norm": "group",
        "position_embeddings_type": None,
        "hidden_act": "relu",
        "feat_extract_activation": "relu",
    },
    "one layer with gaps": {"conv_dim": [9], "conv_kernel": [3], "conv_stride": [5]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_variants_against_the_network_written_out(tmp_path: Path, variant: str) -> None:
    config = {**CONFIG, **VARIANTS[variant]}
    weights = random_weights(config)
    checkpoint = load(tmp_path, config, weights=weights)
    model = checkpoint.build_model()
    frames = checkpoint.model_config.output_frames
    lengths = [frames.first, frames.first + frames.factor, 611, 907]
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(n, generator=generator) for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
    log_probs, lens = model(batch[:, :, None], torch.tensor(lengths))
    for row, n_valid, clip in zip(log_probs, lens.tolist(), clips, strict=True):
        expected = plain_log_probs(config, weights, clip).numpy()
        assert n_valid == len(expected)
        given = original_order(row[:n_valid].numpy(), 2)
        # Float32 rounding of another order of sums; a padded batch must not matter.
        np.testing.assert_allclose(given, expected, atol=5e-5, rtol=0)


@torch.inference_mode()
def test_silence_is_zero_behind_a_group_norm(tmp_path: Path) -> None:
    """Else the norm makes noise of the rounding of a constant, another one in every runtime."""
    config = {**CONFIG, "feat_extract_norm": "group"}
    checkpoint = load(tmp_path, config)
    offset = random_weights(config)[f"{P}.feature_extractor.conv_layers.0.layer_norm.bias"]
    convolution, norm = checkpoint.build_model().encoder.subsampling.stages[0]
    with torch.inference_mode():
        x = convolution(torch.zeros(1, 1, 400))
        given = norm(x, torch.ones(1, x.shape[2], dtype=torch.bool))
    assert torch.equal(given, offset[None, :, None].expand_as(given))


def test_a_clip_shorter_than_the_stack_has_no_frames(tmp_path: Path) -> None:
    checkpoint = load(tmp_path)
    first = checkpoint.model_config.first_output_frames
    for n_samples in (1, first - 1):
        log_probs, lens = checkpoint.build_model()(torch.ones(1, n_samples, 1), torch.tensor([n_samples]))
        assert lens.tolist() == [0]
        assert bool(torch.isfinite(log_probs).all())


def test_the_waveform_is_normalized_over_the_clip(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0.1, 0.02, 400).astype(np.float32)
    given = FeatureExtractor(load(tmp_path).features)(samples)
    expected = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    np.testing.assert_allclose(given[:, 0], expected, atol=1e-5)
    plain = load(tmp_path, extractor={**EXTRACTOR, "do_normalize": False, "sampling_rate": 8000})
    assert (plain.features.normalize, plain.features.sample_rate) == ("none", 8000)
    np.testing.assert_array_equal(FeatureExtractor(plain.features)(samples)[:, 0], samples)


def test_rotary_frequencies_in_the_file_must_be_those_of_the_base(tmp_path: Path) -> None:
    config = {**CONFIG, "position_embeddings_type": "rotary"}
    name = f"{P}.encoder.embed_positions.inv_freq"
    frequency = 1.0 / (300.0 ** (torch.arange(0, 8, 2) / 8))
    weights = {**random_weights(config), name: frequency}
    assert not any("rotary" in note for note in load(tmp_path, config, weights=weights).notes)
    weights[name] = frequency.half()
    assert any("rotary" in note for note in load(tmp_path, config, weights=weights).notes)
    weights[name] = 1.0 / (10000.0 ** (torch.arange(0, 8, 2) / 8))
    with pytest.raises(CheckpointError, match="rotary_embedding_base is 300"):
        load(tmp_path, config, weights=weights)


# Tokenizers.


def test_the_padding_token_is_the_blank_and_the_delimiter_a_space(tmp_path: Path) -> None:
    checkpoint = load(tmp_path)
    assert checkpoint.vocabulary.tokens == ("A", "B", "\u2581", "<unk>", "<blk>")
    assert checkpoint.vocabulary.kind == "char"
    assert checkpoint.source_blank_id == 2


def test_added_tokens_lower_case_and_another_delimiter(tmp_path: Path) -> None:
    tokenizer = {
        **TOKENIZER,
        "word_delimiter_token": {"content": "_", "special": True},
        "do_lower_case": True,
        "added_tokens_decoder": {"4": {"content": "<s>"}},
    }
    checkpoint = load(tmp_path, tokenizer=tokenizer, tokens={"TH": 0, "_": 1, "<pad>": 2, "|": 3})
    assert checkpoint.vocabulary.tokens == ("th", "\u2581", "|", "<s>", "<blk>")
    assert checkpoint.vocabulary.kind == "sentencepiece"


def test_a_null_delimiter_is_no_space(tmp_path: Path) -> None:
    checkpoint = load(tmp_path, tokenizer={**TOKENIZER, "word_delimiter_token": None})
    assert checkpoint.vocabulary.tokens == ("A", "B", "|", "<unk>", "<blk>")


def test_added_tokens_behind_the_outputs_are_left_out(tmp_path: Path) -> None:
    tokenizer = {**TOKENIZER, "added_tokens_decoder": {"5": {"content": "<s>"}, "6": {"content": "</s>"}}}
    checkpoint = load(tmp_path, tokenizer=tokenizer)
    assert checkpoint.vocabulary.tokens == load(tmp_path).vocabulary.tokens
    assert any("2 added tokens have no output" in note for note in checkpoint.notes)


def test_outputs_without_a_token_decode_as_unknown(tmp_path: Path) -> None:
    checkpoint = load(tmp_path, tokens={"A": 0, "<unk>": 1, "<pad>": 2})
    assert checkpoint.vocabulary.tokens == ("A", "<unk>", "<unk>", "<unk>", "<blk>")
    assert any("2 outputs have no token" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"tokenizer": {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}}, "tokenizer_class"),
        ({"tokenizer": {**TOKENIZER, "target_lang": "eng"}}, "target_lang"),
        ({"tokenizer": {**TOKENIZER, "pad_token": "A"}}, "padding token"),
        ({"tokens": {"eng": {"A": 0}}}, "several languages"),
        ({"tokens": {"A": "0"}}, "vocab.json"),
        ({"tokens": {**TOKENS, "C": 5}}, "5 outputs"),
        ({"extractor": {**EXTRACTOR, "feature_extractor_type": "SeamlessM4TFeatureExtractor"}}, "Seamless"),
        ({"extractor": {**EXTRACTOR, "feature_size": 2}}, "feature_size"),
        ({"extractor": {**EXTRACTOR, "num_mel_bins": 80}}, "num_mel_bins"),
    ],
)
def test_files_that_are_not_supported_are_named(tmp_path: Path, files: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path, **files)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"add_adapter": True}, "add_adapter"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim"),
        ({"position_embeddings_type": "absolute"}, "position_embeddings_type"),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"feat_extract_activation": "selu"}, "feat_extract_activation"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm"),
        ({"conv_stride": [3, 4]}, "conv_stride"),
        ({"conv_kernel": [7, 2, 0]}, "conv_kernel"),
        ({"conv_depthwise_kernel_size": 4}, "conv_kernel_size"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"pad_token_id": None}, "pad_token_id"),
        ({"mystery": 1}, "mystery"),
    ],
)
def test_settings_that_are_not_supported_are_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path, {**CONFIG, **change}, weights=random_weights(CONFIG))


def test_a_rotary_model_needs_an_even_head(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="even width"):
        load(tmp_path, {**CONFIG, "position_embeddings_type": "rotary", "num_attention_heads": 8})


def test_unknown_tensors_are_named(tmp_path: Path) -> None:
    weights = {**random_weights(CONFIG), f"{P}.adapter.proj.weight": torch.ones(2, 2)}
    with pytest.raises(CheckpointError, match=r"adapter\.proj"):
        load(tmp_path, weights=weights)


def test_a_feature_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="feature preset"):
        load_any(write(tmp_path / "model", CONFIG), LoadOptions(feature_preset="nemo"))


def test_detection_goes_by_the_architecture(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CONFIG)
    loader = find_loader(folder)
    assert loader is not None
    assert loader.name == "wav2vec2"
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["Wav2Vec2ForCTC"]}))
    other = find_loader(folder)
    assert other is None or other.name != "wav2vec2"
