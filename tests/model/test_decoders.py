"""Attention decoders: shapes, steps against teacher forcing, what may not matter, and wrong settings."""

import json
from typing import Any

import pytest
import torch
from small_models import N_MELS, VOCAB_SIZE, build_model

from edge_asr.errors import ConfigError
from edge_asr.model import ConformerConfig
from edge_asr.model.decoders import AttentionDecoder, DecoderConfig, make_decoder

KINDS: list[dict[str, Any]] = [
    {"kind": "recurrent", "n_layers": 1},
    {"kind": "recurrent", "n_layers": 2, "d_model": 12, "n_heads": 3},
    {"kind": "transformer", "n_layers": 2},
    {"kind": "transformer", "n_layers": 1, "d_model": 12, "n_heads": 3, "d_feed_forward": 7},
    {"kind": "pre_norm", "n_layers": 2, "activation": "relu"},
]
#: float32 rounding of another order of sums; log-probabilities are of size 1 to 10.
TOLERANCE = 1e-5


def build_decoder(config: dict[str, Any], d_memory: int = 16) -> AttentionDecoder:
    torch.manual_seed(0)
    decoder = make_decoder(DecoderConfig(**config), d_memory, VOCAB_SIZE)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return decoder.eval()


def make_batch(decoder: AttentionDecoder, batch: int = 3, n_tokens: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(batch, 9, 16, generator=generator)
    tokens = torch.randint(0, VOCAB_SIZE - 1, (batch, n_tokens), generator=generator)
    tokens[:, 0] = decoder.sos_id
    return memory, torch.tensor([9, 4, 6][:batch]), tokens


@pytest.mark.parametrize("config", KINDS)
@torch.inference_mode()
def test_shapes(config: dict[str, Any]) -> None:
    decoder = build_decoder(config)
    width = config.get("d_model", 16)
    memory, lens, tokens = make_batch(decoder)
    keys, values = decoder.cross(memory)
    layers = 1 if config["kind"] == "recurrent" else config["n_layers"]
    heads = config.get("n_heads", 2)
    assert keys.shape == values.shape == (layers, 3, heads, 9, width // heads)
    log_probs, state = decoder.advance(tokens, decoder.initial_state(3), (keys, values), lens)
    assert log_probs.shape == (3, 7, VOCAB_SIZE + 1)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 7))
    assert torch.equal(decoder(memory, lens, tokens, torch.tensor([7, 3, 1])), log_probs)
    if config["kind"] == "recurrent":
        assert [part.shape for part in state] == [(config["n_layers"], 3, width)] * 2
    else:
        assert [part.shape for part in state] == [(config["n_layers"], 3, heads, 7, width // heads)] * 2
    assert decoder.sos_id == decoder.eos_id == VOCAB_SIZE
    assert decoder.n_tokens == VOCAB_SIZE + 1


@pytest.mark.parametrize("cuts", [[1] * 7, [3, 4], [1, 5, 1], [6, 1]])
@pytest.mark.parametrize("config", KINDS)
@torch.inference_mode()
def test_any_cutting_gives_teacher_forcing(config: dict[str, Any], cuts: list[int]) -> None:
    decoder = build_decoder(config)
    memory, lens, tokens = make_batch(decoder)
    expected = decoder(memory, lens, tokens)
    state, cross, found = decoder.initial_state(3), decoder.cross(memory), []
    for piece in torch.split(tokens, cuts, dim=1):
        log_probs, state = decoder.advance(piece, state, cross, lens)
        found.append(log_probs)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("config", KINDS)
@torch.inference_mode()
def test_outputs_depend_on_earlier_tokens_and_the_clip_alone(config: dict[str, Any]) -> None:
    decoder = build_decoder(config)
    memory, lens, tokens = make_batch(decoder)
    expected = decoder(memory, lens, tokens)
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % (VOCAB_SIZE - 1)
    found = decoder(memory, lens, later)
    torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=0, atol=TOLERANCE)
    assert not torch.allclose(found[:, 4:], expected[:, 4:], atol=1e-3)
    assert not torch.allclose(decoder(memory.flip(0), lens, tokens), expected, atol=1e-3)


@pytest.mark.parametrize("config", KINDS)
@torch.inference_mode()
def test_padding_of_the_memory_changes_nothing(config: dict[str, Any]) -> None:
    decoder = build_decoder(config)
    memory, lens, tokens = make_batch(decoder)
    expected = decoder(memory, lens, tokens)
    for row, length in enumerate(lens.tolist()):
        memory[row, length:] = 100.0
    padded = torch.cat((memory, torch.full((3, 5, 16), -100.0)), dim=1)
    torch.testing.assert_close(decoder(padded, lens, tokens), expected, rtol=0, atol=TOLERANCE)
    alone = decoder(memory[1:2, :4], lens[1:2], tokens[1:2])
    torch.testing.assert_close(alone, expected[1:2], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("config", KINDS)
@torch.inference_mode()
def test_beams_share_the_clip(config: dict[str, Any]) -> None:
    """The cross tensors of one clip serve any number of rows."""
    decoder = build_decoder(config)
    memory, lens, tokens = make_batch(decoder)
    shared = decoder.cross(memory[:1])
    found, _ = decoder.advance(tokens, decoder.initial_state(3), shared, lens[:1])
    expected = decoder(memory[:1].expand(3, -1, -1), lens[:1].expand(3), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
@torch.inference_mode()
def test_a_decoder_leaves_the_ctc_outputs_alone(kind: str) -> None:
    model = build_model(decoder={"kind": kind}, right_decoder={"kind": kind})
    plain = build_model()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "decoder" not in k})
    features, lens = torch.randn(2, 40, N_MELS), torch.tensor([40, 17])
    assert torch.equal(model(features, lens)[0], plain(features, lens)[0])
    encoded, encoded_lens = model.encode(features, lens)
    assert torch.equal(model.head(encoded), plain(features, lens)[0])
    tokens = torch.tensor([[VOCAB_SIZE, 1, 2]] * 2)
    for decoder in (model.decoder, model.right_decoder):
        assert decoder is not None
        assert decoder(encoded, encoded_lens, tokens).shape == (2, 3, VOCAB_SIZE + 1)


def test_a_description_is_completed_and_survives_json() -> None:
    config = ConformerConfig(vocab_size=30, d_model=48, decoder=DecoderConfig(kind="recurrent"))
    assert config.decoder == DecoderConfig(
        kind="recurrent", d_model=48, d_feed_forward=96, n_tokens=31, sos_id=30, eos_id=30
    )
    assert ConformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    source = DecoderConfig(n_tokens=30, sos_id=28, eos_id=28).complete(48, 30)
    assert (source.n_tokens, source.sos_id) == (30, 28)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "rnnt"}, "decoder.kind is 'rnnt'; it must be one of recurrent, transformer"),
        ({"n_layers": 0}, "decoder.n_layers must be from 1 to 256, got 0"),
        ({"n_heads": 5}, "decoder.d_model must be even and a multiple of decoder.n_heads, got 144 with 5"),
        ({"d_model": 33, "n_heads": 3}, "decoder.d_model must be even .* got 33 with 3 heads"),
        ({"d_feed_forward": 1 << 20}, "decoder.d_feed_forward must be from 1 to 65536, got 1048576"),
        ({"norm_eps": 0}, "decoder.norm_eps must be a number above 0, got 0.0"),
        ({"dropout": 1}, "decoder.dropout must be at least 0 and below 1, got 1.0"),
        ({"n_tokens": 20}, "decoder.n_tokens must be at least 29, .* got 20"),
        ({"n_tokens": 31, "sos_id": 31}, "decoder.sos_id must be from 0 to 30, got 31"),
        ({"eos_id": -1}, "decoder.eos_id must be from 0 to 65535, got -1"),
        ({"eos_id": 31}, "decoder.eos_id must be from 0 to 30, got 31"),
        ({"wings": 2}, "decoder has the unknown key 'wings'"),
    ],
)
def test_bad_settings_name_the_field_and_the_value(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConformerConfig.from_dict({"vocab_size": 30, "decoder": setting})


def test_a_right_decoder_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="right_decoder is given without decoder; give decoder too"):
        ConformerConfig.from_dict({"vocab_size": 30, "right_decoder": {}})


def test_an_incomplete_description_makes_no_decoder() -> None:
    with pytest.raises(ConfigError, match=r"fill them with DecoderConfig\.complete"):
        AttentionDecoder(DecoderConfig())
