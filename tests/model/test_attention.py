"""Both attentions against their formula, written as loops over pairs of frames in float64."""

import math

import pytest
import torch
from small_models import build_model
from torch import Tensor

from edge_asr.errors import ConfigError
from edge_asr.model import ConformerConfig
from edge_asr.model.attention.choose import check_chunking
from edge_asr.model.attention.linear import TaylorAttention, taylor_attend
from edge_asr.model.attention.relative import RelativePositions, RelPosAttention, relative_shift
from edge_asr.model.masks import attention_bias, chunk_mask, valid_frames

D_MODEL, N_HEADS, D_HEAD = 12, 3, 4


def encode_distance(distance: int) -> Tensor:
    """Transformer's sinusoids of one distance, sine and cosine interleaved."""
    row = []
    for pair in range(D_MODEL // 2):
        angle = distance / 10000 ** (2 * pair / D_MODEL)
        row += [math.sin(angle), math.cos(angle)]
    return torch.tensor(row, dtype=torch.float64)


def project(x: Tensor, module: RelPosAttention | TaylorAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (T, H, d) of one clip (T, D), from the rows of the packed weight."""
    weight, bias = module.qkv.weight.double(), module.qkv.bias.double()
    parts = [
        x.double() @ weight[i * D_MODEL : (i + 1) * D_MODEL].T + bias[i * D_MODEL : (i + 1) * D_MODEL]
        for i in range(3)
    ]
    query, key, value = (part.reshape(-1, N_HEADS, D_HEAD) for part in parts)
    return query, key, value


def naive_rel_pos(x: Tensor, module: RelPosAttention, visible: Tensor) -> Tensor:
    query, key, value = project(x, module)
    n_frames = x.shape[0]
    context = torch.zeros(n_frames, N_HEADS, D_HEAD, dtype=torch.float64)
    for head in range(N_HEADS):
        u, v = module.pos_bias_u[head].double(), module.pos_bias_v[head].double()
        w_pos = module.position.weight.double()[head * D_HEAD : (head + 1) * D_HEAD]
        for i in range(n_frames):
            keys = [j for j in range(n_frames) if visible[i, j]]
            scores = torch.stack(
                [
                    (query[i, head] + u) @ key[j, head]
                    + (query[i, head] + v) @ (w_pos @ encode_distance(i - j))
                    for j in keys
                ]
            )
            weights = torch.softmax(scores / math.sqrt(D_HEAD), dim=0)
            context[i, head] = sum(
                (w * value[j, head] for w, j in zip(weights, keys, strict=True)), torch.zeros(1)
            )
    return context.reshape(n_frames, D_MODEL) @ module.out.weight.double().T + module.out.bias.double()


def naive_taylor(x: Tensor, module: TaylorAttention, length: int) -> Tensor:
    query, key, value = project(x, module)
    context = torch.zeros(x.shape[0], N_HEADS, D_HEAD, dtype=torch.float64)
    for head in range(N_HEADS):
        for i in range(x.shape[0]):
            scores = torch.stack([query[i, head] @ key[j, head] / math.sqrt(D_HEAD) for j in range(length)])
            weights = sum((scores**n / math.factorial(n) for n in range(module.n_terms)), torch.zeros(1))
            context[i, head] = (weights / weights.sum()) @ value[:length, head]
    return context.reshape(x.shape[0], D_MODEL) @ module.out.weight.double().T + module.out.bias.double()


def config(attention: str = "rel_pos", **more: int) -> ConformerConfig:
    return ConformerConfig.from_dict(
        {"vocab_size": 5, "d_model": D_MODEL, "n_heads": N_HEADS, "attention": attention, **more}
    )


@pytest.mark.parametrize("n_frames", [1, 2, 7])
@pytest.mark.parametrize("chunks", [None, (2, None), (2, 1), (3, 0)])
@torch.inference_mode()
def test_rel_pos_equals_transformer_xl(n_frames: int, chunks: tuple[int, int | None] | None) -> None:
    torch.manual_seed(1)
    module = RelPosAttention(config()).eval()
    module.pos_bias_u.normal_()
    module.pos_bias_v.normal_()
    lens = torch.tensor([n_frames, max(1, n_frames - 3)])
    x = torch.randn(2, n_frames, D_MODEL)
    valid = valid_frames(lens, n_frames)
    chunk_frames, left_chunks = chunks or (None, None)
    bias = attention_bias(valid, chunk_frames, left_chunks)
    actual = module(x, bias, RelativePositions(D_MODEL)(n_frames), valid)
    for row, length in enumerate(lens.tolist()):
        visible = torch.ones(length, length, dtype=torch.bool)
        if chunk_frames is not None:
            for i in range(length):
                for j in range(length):
                    behind = i // chunk_frames - j // chunk_frames
                    visible[i, j] = behind >= 0 and (left_chunks is None or behind <= left_chunks)
        expected = naive_rel_pos(x[row, :length], module, visible)
        torch.testing.assert_close(actual[row, :length].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_terms", [3, 5, 7])
@pytest.mark.parametrize("n_frames", [1, 2, 7])
@torch.inference_mode()
def test_linear_equals_its_quadratic_form(n_frames: int, n_terms: int) -> None:
    torch.manual_seed(2)
    module = TaylorAttention(config("linear", taylor_terms=n_terms)).eval()
    lens = torch.tensor([n_frames, max(1, n_frames - 3)])
    x = torch.randn(2, n_frames, D_MODEL)
    actual = module(x, torch.empty(0), torch.empty(0), valid_frames(lens, n_frames))
    for row, length in enumerate(lens.tolist()):
        expected = naive_taylor(x[row, :length], module, length)
        torch.testing.assert_close(actual[row, :length].double(), expected, rtol=0, atol=1e-5)


def test_more_terms_come_closer_to_softmax() -> None:
    """The remainder of the series bounds it: scores within 1 leave less than e / K! of exp."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 3, 20, 4, generator=generator).double() for _ in range(3))
    query = query / (query[..., None, :] * key[..., None, :, :]).sum(-1).abs().max()
    expected = torch.softmax(query @ key.mT, dim=-1) @ value
    weight, errors = torch.ones(2, 1, 20, 1, dtype=torch.float64), []
    for n_terms in (3, 5, 7):
        found = taylor_attend(query, key, value, weight, n_terms)
        errors.append(float((found - expected).abs().max()))
        # A weight is off by at most twice the remainder, relative to exp(-1), and so is the mean of values.
        assert errors[-1] < 2 * math.e**2 / math.factorial(n_terms) * float(value.abs().max())
    assert errors[2] < errors[1] / 10 < errors[0] / 100


@pytest.mark.parametrize("n_frames", [1, 2, 3, 8])
def test_relative_shift_lines_up_distances(n_frames: int) -> None:
    distance = n_frames - torch.arange(2 * n_frames, dtype=torch.float32)
    scores = distance.expand(2, 3, n_frames, 2 * n_frames)
    i, j = torch.arange(n_frames)[:, None], torch.arange(n_frames)[None, :]
    expected = (i - j).float().expand(2, 3, n_frames, n_frames)
    assert torch.equal(relative_shift(scores), expected)


def test_positions_are_the_sinusoids_of_distances() -> None:
    table = RelativePositions(D_MODEL)(5)
    assert table.shape == (10, D_MODEL)
    for row in range(10):
        torch.testing.assert_close(table[row].double(), encode_distance(5 - row), rtol=0, atol=1e-6)


def test_chunk_mask_by_hand() -> None:
    mask = chunk_mask(5, 2, 1, torch.device("cpu")).int().tolist()
    assert mask == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("chunk_frames", "left_chunks", "attention", "message"),
    [
        (0, None, "rel_pos", "chunk_frames must be at least 1 encoder frame, got 0"),
        (4, -1, "rel_pos", "left_chunks must be 0 or more"),
        (None, 2, "rel_pos", "left_chunks is 2 without chunk_frames"),
        (4, None, "linear", 'takes no chunks; use attention "rel_pos"'),
    ],
)
def test_bad_chunks_are_refused(
    chunk_frames: int | None, left_chunks: int | None, attention: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_chunking(config(attention), chunk_frames, left_chunks)


def test_the_model_refuses_bad_chunks_too() -> None:
    model = build_model(attention="linear")
    with pytest.raises(ConfigError, match="takes no chunks"):
        model(torch.zeros(1, 8, 20), torch.tensor([8]), chunk_frames=2)
