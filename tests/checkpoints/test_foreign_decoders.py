"""Attention decoders of WeNet and ESPnet: golden outputs, settings against the formulas, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_checks import check_fixture, golden_folder
from make_espnet import (
    ACTIVATIONS,
    ESPNET,
    TOKENS,
    WENET,
    D,
    Plain,
    changed,
    random_weights,
    sinusoids,
    write_espnet,
    write_wenet,
)
from torch import Tensor
from torch.nn import functional as F

from edge_asr.checkpoints import Checkpoint, LoadOptions, load_any, load_checkpoint, save_checkpoint
from edge_asr.errors import CheckpointError
from edge_asr.model.decoders import AttentionDecoder

V, INNER = len(TOKENS), 10
PLAIN = LoadOptions()
CONF = {"attention_heads": 3, "linear_units": INNER, "num_blocks": 2}


@pytest.mark.parametrize("name", ["wenet-decoder", "wenet-u2pp-decoder", "espnet-decoder"])
def test_golden_outputs(golden_dir: Path, name: str) -> None:
    """Log-probs, rescoring and searches as the original's own code has them; float32 over two blocks."""
    result = check_fixture(golden_folder(golden_dir, name))
    assert result.decoder_torch is not None
    assert result.decoder_torch <= 5e-5
    assert result.decoder_scores is not None
    assert result.decoder_scores <= 5e-4  # sums of up to 70
    assert result.tokens_decoder


@pytest.mark.parametrize(
    "name", ["wenet-conformer", "wenet-u2pp", "espnet-conformer", "espnet-conformer-legacy"]
)
def test_decoders_of_the_other_fixtures_come_along(golden_dir: Path, name: str) -> None:
    checkpoint = load_any(golden_dir / name)
    config = checkpoint.model_config
    assert config.decoder is not None
    assert config.decoder.kind == "pre_norm"
    assert (config.right_decoder is not None) == (name == "wenet-u2pp")
    assert checkpoint.facts.ctc_weight == 0.3
    assert not any("left out" in note for note in checkpoint.notes)
    assert checkpoint.build_model().decoder is not None


def decoder_weights(
    prefix: str, n_blocks: int, *, missing: tuple[str, ...] = (), kv_heads: int | None = None
) -> dict[str, Tensor]:
    """A decoder's tensors by the originals' names, none at its default."""
    generator = torch.Generator().manual_seed(len(prefix))
    weights: dict[str, Tensor] = {}

    def layer(name: str, rows: int, columns: int) -> None:
        weights[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * columns**-0.5
        if not any(name.endswith(part) for part in missing):
            weights[f"{name}.bias"] = 0.3 * torch.randn(rows, generator=generator)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = 1.0 + 0.3 * torch.randn(D, generator=generator)
        weights[f"{name}.bias"] = 0.3 * torch.randn(D, generator=generator)

    weights[f"{prefix}.embed.0.weight"] = torch.randn(V, D, generator=generator)
    of_keys = D // 3 * (kv_heads or 3)
    for number in range(n_blocks):
        block = f"{prefix}.decoders.{number}"
        for attention in ("self_attn", "src_attn"):
            for part, size in (("q", D), ("k", of_keys), ("v", of_keys), ("out", D)):
                layer(f"{block}.{attention}.linear_{part}", size, D)
        layer(f"{block}.feed_forward.w_1", INNER, D)
        layer(f"{block}.feed_forward.w_2", D, INNER)
        for place in (1, 2, 3):
            norm(f"{block}.norm{place}")
    norm(f"{prefix}.after_norm")
    layer(f"{prefix}.output_layer", V, D)
    return weights


def plain_decoder(
    w: dict[str, Tensor],
    prefix: str,
    memory: Tensor,
    tokens: list[int],
    *,
    n_blocks: int = 2,
    activation: str = "relu",
    eps: float,
) -> Tensor:
    """Log-probs (U, V) after each of the original's tokens; (T, D) is what it attends to."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attend(name: str, x: Tensor, source: Tensor, causal: bool) -> Tensor:
        heads = []
        q, k, v = (linear(f"{name}.linear_{part}", y) for part, y in (("q", x), ("k", source), ("v", source)))
        d, n_kv = D // 3, k.shape[1] // (D // 3)
        for head in range(3):
            served = head * n_kv // 3
            mine, keys = q[:, head * d : (head + 1) * d], k[:, served * d : (served + 1) * d]
            scores = mine @ keys.T / math.sqrt(d)
            if causal:
                scores = scores + torch.triu(torch.full_like(scores, -math.inf), diagonal=1)
            heads.append(torch.softmax(scores, dim=-1) @ v[:, served * d : (served + 1) * d])
        return linear(f"{name}.linear_out", torch.cat(heads, dim=1))

    x = w[f"{prefix}.embed.0.weight"][tokens] * math.sqrt(D) + sinusoids(range(len(tokens)))
    for number in range(n_blocks):
        block = f"{prefix}.decoders.{number}"
        y = norm(f"{block}.norm1", x)
        x = x + attend(f"{block}.self_attn", y, y, causal=True)
        x = x + attend(f"{block}.src_attn", norm(f"{block}.norm2", x), memory, causal=False)
        y = ACTIVATIONS[activation](linear(f"{block}.feed_forward.w_1", norm(f"{block}.norm3", x)))
        x = x + linear(f"{block}.feed_forward.w_2", y)
    return torch.log_softmax(linear(f"{prefix}.output_layer", norm(f"{prefix}.after_norm", x)), dim=-1)


def load_wenet(
    tmp_path: Path, weights: dict[str, Tensor], options: LoadOptions = PLAIN, **sections: Any
) -> Checkpoint:
    encoder = {k: v for k, v in random_weights(Plain(attention="wenet")).items() if "decoder" not in k}
    config = changed({**WENET, "decoder_conf": CONF, "decoder": "transformer"}, **sections)
    return load_any(write_wenet(tmp_path / "model", config, {**encoder, **weights}), options)


def load_espnet(
    tmp_path: Path, weights: dict[str, Tensor], options: LoadOptions = PLAIN, **sections: Any
) -> Checkpoint:
    encoder = {k: v for k, v in random_weights(Plain(attention="legacy")).items() if "decoder" not in k}
    config = changed({**ESPNET, "decoder_conf": CONF, "decoder": "transformer"}, **sections)
    return load_any(write_espnet(tmp_path / "exp", config, {**encoder, **weights}), options)


def check_decoder(
    decoder: AttentionDecoder | None, weights: dict[str, Tensor], prefix: str, sos: int, **plain: Any
) -> None:
    """Ours against the formulas, to float32's rounding over two blocks."""
    assert decoder is not None
    memory = torch.randn(9, D, generator=torch.Generator().manual_seed(4))
    theirs = [sos, 3, 1, 4, 4, 2]
    expected = plain_decoder(weights, prefix, memory, theirs, **plain)
    with torch.inference_mode():
        # The blank is their token 0 and our last.
        found = decoder(memory[None], torch.tensor([9]), torch.tensor([[token - 1 for token in theirs]]))[0]
    torch.testing.assert_close(found.roll(1, dims=-1), expected, atol=2e-5, rtol=0)


WENET_SETTINGS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({"activation_type": "swish", "norm_eps": 1e-2}, {}, {"activation": "swish", "eps": 1e-2}),
    ({"activation_type": "hardtanh"}, {}, {"activation": "hardtanh"}),
    (
        {"query_bias": False, "value_bias": False, "src_key_bias": False, "mlp_bias": False},
        {
            "missing": (
                "self_attn.linear_q", "self_attn.linear_out", "self_attn.linear_v", "src_attn.linear_k",
                "w_1", "w_2",
            )
        },
        {},
    ),
    ({"n_kv_head": 1, "head_dim": 4}, {"kv_heads": 1}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("conf", "made", "plain"), WENET_SETTINGS)
def test_wenets_settings_against_the_formulas(
    tmp_path: Path, conf: dict[str, Any], made: dict[str, Any], plain: dict[str, Any]
) -> None:
    weights = decoder_weights("decoder", 2, **made)
    model = load_wenet(tmp_path, weights, decoder_conf=conf).build_model()
    assert model.right_decoder is None
    check_decoder(model.decoder, weights, "decoder", V - 1, **{"eps": 1e-5, **plain})


def test_both_directions_of_u2pp(tmp_path: Path) -> None:
    left, right = decoder_weights("decoder.left_decoder", 2), decoder_weights("decoder.right_decoder", 1)
    tokens = {"special_tokens": {"<blank>": 0, "<sos>": 5, "<eos>": 6}}
    checkpoint = load_wenet(
        tmp_path,
        {**left, **right},
        decoder="bitransformer",
        decoder_conf={"r_num_blocks": 1},
        tokenizer_conf=tokens,
        model_conf={"ctc_weight": 0.4, "reverse_weight": 0.2},
    )
    assert (checkpoint.facts.ctc_weight, checkpoint.facts.reverse_weight) == (0.4, 0.2)
    model = checkpoint.build_model()
    check_decoder(model.decoder, left, "decoder.left_decoder", 5, eps=1e-5)
    check_decoder(model.right_decoder, right, "decoder.right_decoder", 5, eps=1e-5, n_blocks=1)
    for decoder in (model.decoder, model.right_decoder):
        assert decoder is not None
        assert (decoder.sos_id, decoder.eos_id, decoder.n_tokens) == (4, 5, V)


def test_espnets_decoder_against_the_formulas(tmp_path: Path) -> None:
    weights = decoder_weights("decoder", 2)
    checkpoint = load_espnet(tmp_path, weights, model_conf={"sym_sos": "C"})
    model = checkpoint.build_model()
    check_decoder(model.decoder, weights, "decoder", 5, eps=1e-12)
    assert model.decoder is not None
    assert (model.decoder.sos_id, model.decoder.eos_id) == (4, 5)
    assert (checkpoint.facts.ctc_weight, checkpoint.facts.reverse_weight) == (0.3, None)


def test_a_saved_checkpoint_keeps_them(tmp_path: Path) -> None:
    weights = {**decoder_weights("decoder.left_decoder", 2), **decoder_weights("decoder.right_decoder", 1)}
    loaded = load_wenet(tmp_path, weights, decoder="bitransformer", decoder_conf={"r_num_blocks": 1})
    save_checkpoint(
        tmp_path / "ours", loaded.build_model(), loaded.features, loaded.vocabulary, {}, facts=loaded.facts
    )
    again = load_checkpoint(tmp_path / "ours")
    assert again.model_config == loaded.model_config
    assert again.facts == loaded.facts
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in loaded.state_dict.items())


def test_a_decoder_can_be_left_out(tmp_path: Path) -> None:
    """Where it is known, where it is not, and in our own format."""
    weights, none = decoder_weights("decoder", 2), LoadOptions(decoder=False)
    plain = load_wenet(tmp_path, {})
    assert plain.model_config.decoder is None  # the settings name one, the weights hold none
    for conf in ({}, {"mlp_type": "moe"}):
        left_out = load_wenet(tmp_path, weights, none, decoder_conf=conf)
        assert left_out.model_config == plain.model_config
        assert left_out.state_dict.keys() == plain.state_dict.keys()
        assert left_out.facts.ctc_weight is None
        assert any("(transformer) was left out" in note for note in left_out.notes)
    assert load_espnet(tmp_path, weights, none).model_config.decoder is None
    with_one = load_wenet(tmp_path, weights)
    save_checkpoint(tmp_path / "ours", with_one.build_model(), with_one.features, with_one.vocabulary, {})
    assert load_any(tmp_path / "ours").model_config.decoder is not None
    ours: Checkpoint = load_any(tmp_path / "ours", none)
    assert ours.model_config.decoder is None
    ours.build_model()


def test_what_older_files_hold_besides(tmp_path: Path) -> None:
    """Tables of positions, layers that only concat_after uses, a right decoder without blocks."""
    left = decoder_weights("decoder.left_decoder", 2)
    more = {"decoder.left_decoder.embed.1.pe": sinusoids(range(20))[None]}
    for number in (1, 2):
        more[f"decoder.left_decoder.decoders.0.concat_linear{number}.weight"] = torch.ones(D, 2 * D)
        more[f"decoder.left_decoder.decoders.0.concat_linear{number}.bias"] = torch.ones(D)
    empty = decoder_weights("decoder.right_decoder", 0)
    checkpoint = load_wenet(tmp_path, {**left, **more, **empty}, decoder="bitransformer")
    model = checkpoint.build_model()
    assert model.right_decoder is None
    check_decoder(model.decoder, left, "decoder.left_decoder", V - 1, eps=1e-5)
    assert "The right-to-left decoder has no blocks and was left out." in checkpoint.notes


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"normalize_before": False}, "decoder_conf.normalize_before is False"),
        ({"concat_after": True}, "decoder_conf.concat_after is True"),
        ({"input_layer": "embed_learnable_pe"}, "decoder_conf.input_layer is 'embed_learnable_pe'"),
        ({"use_output_layer": False}, "decoder_conf.use_output_layer is False"),
        ({"layer_norm_type": "rms_norm"}, "decoder_conf.layer_norm_type is 'rms_norm'"),
        ({"mlp_type": "gated"}, "decoder_conf.mlp_type is 'gated'"),
        ({"src_attention": False}, "decoder_conf.src_attention is False"),
        ({"n_kv_head": 2, "head_dim": 4}, "a divisor of attention_heads"),
        ({"attention_heads": 5}, "a multiple of decoder.n_heads"),
        ({"num_blocks": 3}, "lacks the tensor 'decoder.decoders.2"),
        ({"what": 1}, "unknown setting 'what'"),
    ],
)
def test_wenets_refusals(tmp_path: Path, conf: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=r"the decoder can be left out \(--no-decoder\)") as error:
        load_wenet(tmp_path, decoder_weights("decoder", 2), decoder_conf=conf)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"decoder_conf": {"qk_norm": True}}, "decoder_conf.qk_norm is True"),
        ({"decoder_conf": {"normalize_before": False}}, "decoder_conf.normalize_before is False"),
        ({"decoder_conf": {"concat_after": True}}, "decoder_conf.concat_after is True"),
        ({"model_conf": {"lang_token_id": 4}}, "model_conf.lang_token_id is 4"),
        ({"model_conf": {"sym_eos": "<blank>"}}, "the end of a text is token 0 of 7, with the blank at 0"),
    ],
)
def test_espnets_refusals(tmp_path: Path, sections: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=r"the decoder can be left out \(--no-decoder\)") as error:
        load_espnet(tmp_path, decoder_weights("decoder", 2), **sections)
    assert named in str(error.value)


def test_a_decoder_behind_blanks_is_refused(tmp_path: Path) -> None:
    weights = decoder_weights("decoder", 2)
    with pytest.raises(CheckpointError, match=r"apply_non_blank_embedding is True.*--no-decoder"):
        load_wenet(tmp_path, weights, model_conf={"apply_non_blank_embedding": True})


@pytest.mark.parametrize("load", [load_wenet, load_espnet])
def test_a_tensor_that_is_not_known_is_refused(tmp_path: Path, load: Any) -> None:
    weights = {**decoder_weights("decoder", 2), "decoder.decoders.0.norm4.weight": torch.ones(D)}
    with pytest.raises(CheckpointError, match=r"does not know \(decoder\.decoders\.0\.norm4\.weight\)"):
        load(tmp_path, weights)
