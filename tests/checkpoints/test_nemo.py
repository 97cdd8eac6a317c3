"""NeMo's network: golden fixtures, and settings that none has against plain re-implementations of NeMo."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_checks import check_fixture, golden_folder
from make_nemo import CONFIG, changed, load, random_weights
from torch import Tensor

from edge_asr.checkpoints import Checkpoint
from edge_asr.errors import CheckpointError

FIXTURES = (
    "nemo-conformer-bpe",
    "nemo-conformer-char",
    "nemo-fastconformer-bpe",
    "nemo-fastconformer-local",
    "nemo-fastconformer-local-asym",
    "nemo-fastconformer-streaming",
)


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_outputs(golden_dir: Path, name: str) -> None:
    check_fixture(golden_folder(golden_dir, name))


def test_golden_outputs_through_the_runtime(golden_dir: Path, golden_bundle: Callable[[str], Path]) -> None:
    check_fixture(golden_folder(golden_dir, "nemo-conformer-char"), golden_bundle("nemo-conformer-char"))


def run(checkpoint: Checkpoint, n_frames: int = 45, n_rows: int = 1) -> Tensor:
    features = torch.randn(n_rows, n_frames, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        log_probs: Tensor = checkpoint.build_model()(features, torch.full((n_rows,), n_frames))[0]
    return log_probs


# Settings that are other numbers of the same network.


def test_no_biases_are_zero_biases(tmp_path: Path) -> None:
    config = changed(encoder={"use_bias": False})
    without = random_weights(config)
    with_zeros = {**random_weights(changed()), **without}
    for name in with_zeros:
        if name not in without:
            with_zeros[name] = torch.zeros_like(with_zeros[name])
    first = load(tmp_path, config, weights=without)
    second = load(tmp_path, changed(), weights=with_zeros)
    assert torch.equal(run(first), run(second))


def test_an_output_projection_is_multiplied_into_the_head(tmp_path: Path) -> None:
    config = changed(encoder={"feat_out": 20}, decoder={"feat_in": 20})
    weights = random_weights(config)
    plain = {k: v for k, v in weights.items() if "out_proj" not in k}
    head, projection = weights["decoder.decoder_layers.0.weight"][:, :, 0], weights["encoder.out_proj.weight"]
    plain["decoder.decoder_layers.0.weight"] = (head.double() @ projection.double()).float()[:, :, None]
    bias = head.double() @ weights["encoder.out_proj.bias"].double()
    plain["decoder.decoder_layers.0.bias"] = (bias + weights["decoder.decoder_layers.0.bias"]).float()
    expected = run(load(tmp_path, changed(), weights=plain))
    torch.testing.assert_close(run(load(tmp_path, config, weights=weights)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("subsampling", ["striding", "dw_striding"])
@pytest.mark.parametrize("causal", [False, True])
def test_subsampling_against_plain_convolutions(
    tmp_path: Path, subsampling: str, factor: int, causal: bool
) -> None:
    """Every length, rows of a batch as alone: convolutions of one clip, written out (subsampling.py)."""
    config = changed(
        encoder={"subsampling": subsampling, "subsampling_factor": factor, "causal_downsampling": causal}
    )
    weights = random_weights(config)
    checkpoint = load(tmp_path, config, weights=weights)
    model = checkpoint.build_model()
    conv = "encoder.pre_encode.conv"
    n_stages = int(math.log2(factor))

    def plain(clip: Tensor) -> Tensor:
        x = clip[None, None]
        for stage in range(n_stages):
            x = torch.nn.functional.pad(x, (2, 1, 2, 1) if causal else (1, 1, 1, 1))
            depthwise = stage > 0 and subsampling == "dw_striding"
            number = 0 if stage == 0 else 3 * stage - 1 if depthwise else 2 * stage
            weight, bias = weights[f"{conv}.{number}.weight"], weights[f"{conv}.{number}.bias"]
            x = torch.nn.functional.conv2d(x, weight, bias, stride=2, groups=6 if depthwise else 1)
            if depthwise:
                weight, bias = weights[f"{conv}.{3 * stage}.weight"], weights[f"{conv}.{3 * stage}.bias"]
                x = torch.nn.functional.conv2d(x, weight, bias)
            x = torch.relu(x)
        x = x.transpose(1, 2).flatten(2)[0]
        return x @ weights["encoder.pre_encode.out.weight"].T + weights["encoder.pre_encode.out.bias"]

    lengths = [1, 2, 3, 7, 8, 9, 16, 17, 31]
    generator = torch.Generator().manual_seed(5)
    clips = [torch.randn(n, 16, generator=generator) for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.no_grad():
        rows = model.encoder.subsampling(batch, torch.tensor(lengths))
        counts = model(batch + 0.0, torch.tensor(lengths))[1]
    for row, clip, count in zip(rows, clips, counts.tolist(), strict=True):
        expected = plain(clip)
        assert count == len(expected) == model.config.output_frames.n_valid(len(clip))
        torch.testing.assert_close(row[:count], expected, atol=1e-5, rtol=0)


# Local attention, against NeMo's columns written out one score at a time.


def plain_local_attention(
    weights: dict[str, Tensor],
    x: Tensor,
    *,
    left: int,
    right: int,
    n_heads: int,
    g: int,
    spacing: int,
    separate: bool,
) -> Tensor:
    """RelPositionMultiHeadAttentionLongformer for one clip x (T, D), in loops over frames and columns."""
    prefix = "encoder.layers.0.self_attn"
    n_frames, d_model = x.shape
    d = d_model // n_heads

    def project(name: str) -> Tensor:
        y = x @ weights[f"{prefix}.{name}.weight"].T + weights[f"{prefix}.{name}.bias"]
        return y.reshape(n_frames, n_heads, d)

    q, k, v = (project(f"linear_{part}") for part in "qkv")
    gq, gk, gv = (project(f"global_{part}") for part in "qkv") if separate else (q, k, v)
    u, bias_v = weights[f"{prefix}.pos_bias_u"], weights[f"{prefix}.pos_bias_v"]
    w = max(left, right)
    distances = list(range(left, -right - 1, -1))
    table = torch.zeros(len(distances), d_model)
    for m, distance in enumerate(distances):
        for i in range(d_model // 2):
            angle = distance * 10000.0 ** (-2 * i / d_model)
            table[m, 2 * i], table[m, 2 * i + 1] = math.sin(angle), math.cos(angle)
    p = (table @ weights[f"{prefix}.linear_pos.weight"].T).reshape(len(distances), n_heads, d)
    tokens = [t for t in range(0, g * spacing, spacing) if t < n_frames]
    out = torch.zeros(n_frames, n_heads, d)
    for h in range(n_heads):
        for t in range(n_frames):
            ac = torch.full((2 * w + 1,), -math.inf)
            for c in range(2 * w + 1):
                if 0 <= t - w + c < n_frames:
                    ac[c] = (q[t, h] + u[h]) @ k[t - w + c, h]
            bd = torch.stack([(q[t, h] + bias_v[h]) @ p[m, h] for m in range(len(distances))])
            if left:
                ac[:left] += bd[:left]
            ac[-(right + 1) :] += bd[left:]
            scores = ac / math.sqrt(d)
            scores[: w - left] = -10000.0
            scores[w + right + 1 :] = -10000.0
            beside = [gq[t, h] @ gk[j, h] / math.sqrt(d) for j in tokens]
            soft = torch.softmax(torch.cat((torch.tensor(beside), scores)), dim=0)
            for number, j in enumerate(tokens):
                out[t, h] += soft[number] * v[j, h]
            for c in range(2 * w + 1):
                if 0 <= t - w + c < n_frames:
                    out[t, h] += soft[len(tokens) + c] * v[t - w + c, h]
    # NeMo's reshape of (token, head) into (head, token).
    asked = gq[tokens].reshape(-1, d).reshape(n_heads, len(tokens), d) if tokens else None
    for number, j in enumerate(tokens):
        for h in range(n_heads):
            assert asked is not None
            soft = torch.softmax(gk[:, h] @ asked[h, number] / math.sqrt(d), dim=0)
            out[j, h] = soft @ gv[:, h]
    y = out.reshape(n_frames, d_model)
    return y @ weights[f"{prefix}.linear_out.weight"].T + weights[f"{prefix}.linear_out.bias"]


@pytest.mark.parametrize(
    ("left", "right", "g", "spacing", "separate"),
    [
        (4, 4, 0, 1, False),
        (5, 2, 0, 1, False),
        (2, 6, 0, 1, False),
        (3, 0, 0, 1, False),
        (0, 3, 0, 1, False),
        (3, 3, 1, 1, False),
        (4, 2, 2, 3, False),
        (3, 3, 3, 2, True),
    ],
)
def test_local_attention_against_its_columns(
    tmp_path: Path, left: int, right: int, g: int, spacing: int, separate: bool
) -> None:
    """Rows of a padded batch as alone, also one shorter than the global tokens reach."""
    config = changed(
        encoder={
            "self_attention_model": "rel_pos_local_attn",
            "att_context_size": [left, right],
            "global_tokens": g,
            "global_tokens_spacing": spacing,
            "global_attn_separate": separate,
            "n_layers": 1,
        }
    )
    weights = random_weights(config)
    model = load(tmp_path, config, weights=weights).build_model()
    encoder = model.encoder
    attention = encoder.layers[0].attention
    lengths = torch.tensor([17, 9, 4])
    x = torch.randn(3, 17, 12, generator=torch.Generator().manual_seed(7))
    from edge_asr.model.masks import attention_bias, context_mask, valid_frames

    valid = valid_frames(lengths, 17)
    bias = attention_bias(valid, None, None, context_mask(model.config, 17, x.device))
    with torch.no_grad():
        given = attention(x, bias, encoder.positions(17), valid)
    for row, n in enumerate(lengths.tolist()):
        expected = plain_local_attention(
            weights, x[row, :n], left=left, right=right, n_heads=3, g=g, spacing=spacing, separate=separate
        )
        torch.testing.assert_close(given[row, :n], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("contexts", "style", "visible"),
    [
        ([3, 1], "regular", lambda i, j: -1 <= i - j <= 3),
        ([-1, 2], "regular", lambda i, j: i - j >= -2),
        ([2, -1], "regular", lambda i, j: i - j <= 2),
        ([4, 1], "chunked_limited", lambda i, j: 0 <= i // 2 - j // 2 <= 2),
        ([-1, 2], "chunked_limited", lambda i, j: i // 3 >= j // 3),
        ([[4, 1], [4, 0]], "chunked_limited", lambda i, j: 0 <= i // 2 - j // 2 <= 2),
        ([[4, -1], [4, 0]], "chunked_limited", lambda i, j: i - j <= 4),
    ],
)
def test_contexts_are_masks(tmp_path: Path, contexts: Any, style: str, visible: Any) -> None:
    """`_create_masks`, pair by pair."""
    from edge_asr.model.masks import context_mask

    config = changed(encoder={"att_context_size": contexts, "att_context_style": style})
    mask = context_mask(load(tmp_path, config).model_config, 11, torch.device("cpu"))
    assert mask is not None
    assert mask.tolist() == [[bool(visible(i, j)) for j in range(11)] for i in range(11)]


def test_every_look_ahead_is_kept_for_the_export_to_choose(tmp_path: Path) -> None:
    from edge_asr.export.streaming.plan import StreamingOptions, plan_streaming

    contexts = [[8, 3], [8, 1], [8, 0]]
    encoder = {
        "att_context_size": contexts,
        "att_context_style": "chunked_limited",
        "conv_context_size": "causal",
    }
    config = changed(encoder=encoder, preprocessor={"normalize": "NA"})
    checkpoint = load(tmp_path, config)
    assert checkpoint.attention_contexts == ((8, 3), (8, 1), (8, 0))
    plan = plan_streaming(checkpoint, StreamingOptions(lookahead_ms=40))
    assert plan.stream is plan.offline
    assert plan.offline.attention_context == (8, 1)
    config["encoder"]["att_context_size"] = [[8, 3], [8, "1"]]
    with pytest.raises(CheckpointError, match=r"lists .*'1'"):
        load(tmp_path, config)


# Classes, archives, and what is refused.


def test_the_ctc_branch_of_a_hybrid(tmp_path: Path) -> None:
    config = changed(target="nemo.collections.asr.models.hybrid_rnnt_ctc_models.EncDecHybridRNNTCTCModel")
    config["aux_ctc"] = {
        "ctc_loss_weight": 0.3,
        "use_cer": False,
        "ctc_reduction": "mean",
        "decoder": config["decoder"],
    }
    config["decoder"] = {"_target_": "nemo.collections.asr.modules.RNNTDecoder", "prednet": {}}
    config["joint"] = {"_target_": "nemo.collections.asr.modules.RNNTJoint"}
    weights = random_weights(config, head="ctc_decoder")
    plain = {name.replace("ctc_decoder", "decoder"): value for name, value in weights.items()}
    others = {"decoder.prediction.embed.weight": torch.zeros(5, 4), "joint.enc.weight": torch.zeros(4, 12)}
    checkpoint = load(tmp_path, config, weights={**weights, **others})
    assert any("transducer branch" in note for note in checkpoint.notes)
    assert torch.equal(run(checkpoint), run(load(tmp_path, changed(), weights=plain)))


def test_gzip_archives_of_old_versions(tmp_path: Path) -> None:
    assert load(tmp_path, CONFIG, mode="w:gz").vocabulary.tokens == ("▁", "a", "b", "c", "<blk>")


def test_a_fused_norm_is_a_scale_and_an_offset(tmp_path: Path) -> None:
    """NeMo's FusedBatchNorm1d: x * weight + bias, what a BatchNorm of these statistics computes."""
    plain = random_weights(changed())
    fused = dict(plain)
    for layer in range(2):
        name = f"encoder.layers.{layer}.conv.batch_norm"
        mean, variance = fused.pop(f"{name}.running_mean"), fused.pop(f"{name}.running_var")
        del fused[f"{name}.num_batches_tracked"]
        scale = plain[f"{name}.weight"] / torch.sqrt(variance + 1e-5)
        fused[f"{name}.weight"], fused[f"{name}.bias"] = scale, plain[f"{name}.bias"] - mean * scale
    config = changed(encoder={"conv_norm_type": "fused_batch_norm"})
    given = run(load(tmp_path, config, weights=fused))
    torch.testing.assert_close(given, run(load(tmp_path, changed(), weights=plain)), atol=1e-4, rtol=0)


def test_contexts_drawn_in_training_are_no_context(tmp_path: Path) -> None:
    encoder = {
        "att_context_style": "chunked_limited_with_rc",
        "att_context_size": [70, 6, 2],
        "att_chunk_context_size": [[70], [1, 6], [0, 2]],
        "conv_context_style": "dcc",
    }
    weights = random_weights(changed())
    checkpoint = load(tmp_path, changed(encoder=encoder), weights=weights)
    assert checkpoint.model_config.attention_context is None
    assert any("contexts of many sizes" in note for note in checkpoint.notes)
    assert torch.equal(run(checkpoint), run(load(tmp_path, changed(), weights=weights)))


def test_local_attention_has_no_chunks(tmp_path: Path) -> None:
    local = {"self_attention_model": "rel_pos_local_attn", "att_context_size": [4, 4]}
    chunks = {**local, "att_context_style": "chunked_limited"}
    weights = random_weights(changed())
    given, expected = (load(tmp_path, changed(encoder=e), weights=weights) for e in (chunks, local))
    assert given.model_config == expected.model_config


def test_a_chunked_subsampling_is_said(tmp_path: Path) -> None:
    checkpoint = load(tmp_path, changed(encoder={"subsampling_conv_chunking_factor": 2}))
    assert any("subsampling_conv_chunking_factor is 2" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"target": "x.EncDecRNNTBPEModel"}, "is a EncDecRNNTBPEModel; edge-asr takes EncDecCTCModel"),
        ({"adapters": {"a": {}}}, "has adapters"),
        ({"encoder": {"subsampling": "vggnet"}}, "subsampling is 'vggnet'; edge-asr takes 'striding'"),
        ({"encoder": {"subsampling_factor": 6}}, "subsampling_factor is 6"),
        ({"encoder": {"self_attention_model": "abs_pos"}}, "self_attention_model is 'abs_pos'"),
        ({"encoder": {"conv_norm_type": "instance_norm"}}, "conv_norm_type is 'instance_norm'"),
        ({"encoder": {"reduction": "pooling", "reduction_factor": 2}}, "reduction is 'pooling'"),
        ({"encoder": {"new_thing": 1}}, "unknown setting 'new_thing'"),
        ({"encoder": {"feat_in": 80}}, "feat_in is 80"),
        ({"preprocessor": {"exact_pad": True}}, "exact_pad is True"),
        ({"preprocessor": {"frame_splicing": 3}}, "frame_splicing is 3"),
        ({"preprocessor": {"log": False}}, "log is False"),
        ({"preprocessor": {"use_torchaudio": True}}, "use_torchaudio is True"),
        ({"preprocessor": {"_target_": "x.AudioToMFCCPreprocessor"}}, "AudioToMFCCPreprocessor"),
        ({"preprocessor": {"window": "kaiser"}}, "window is 'kaiser'"),
        ({"preprocessor": {"normalize": {"fixed_mean": [0.0]}}}, "normalize is"),
        ({"preprocessor": {"normalize": {"fixed_mean": "a", "fixed_std": [[1.0], 2.0]}}}, "normalize is"),
        ({"preprocessor": {"n_fft": "many"}}, "n_fft is 'many'; edge-asr takes a number"),
        ({"preprocessor": {"preemph": [0.97]}}, "preemph is [0.97]; edge-asr takes a number"),
        ({"preprocessor": {"highfreq": float("nan")}}, "highfreq is nan; edge-asr takes a finite number"),
        ({"preprocessor": {"window_size": 0}}, "window_size is '0 samples, its stride 160'"),
        ({"preprocessor": {"log_zero_guard_value": "small"}}, "log_zero_guard_value is 'small'"),
        ({"decoder": {"_target_": "x.ConvASRDecoderReconstruction"}}, "edge-asr takes ConvASRDecoder"),
        ({"decoder": {"add_blank": False}}, "add_blank is False"),
        ({"decoder": {"num_classes": 9}}, "9 classes"),
        ({"unheard_of": {}}, "unknown setting 'unheard_of'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    config = changed(**sections)
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        load(tmp_path, config, weights=random_weights(CONFIG))


@pytest.mark.parametrize("extra", ["encoder.layers.0.adapter.weight", "lm.weight"])
def test_unused_weights_are_errors(tmp_path: Path, extra: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not know .{extra}"):
        load(tmp_path, CONFIG, weights={**random_weights(CONFIG), extra: torch.zeros(2)})


def test_missing_and_misshapen_weights_are_errors(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    name = "encoder.layers.1.conv.depthwise_conv.weight"
    short = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(CheckpointError, match=f"lacks the tensor '{name}'"):
        load(tmp_path, CONFIG, weights=short)
    with pytest.raises(CheckpointError, match=r"depthwise\.weight has shape"):
        load(tmp_path, CONFIG, weights={**weights, name: torch.zeros(12, 1, 7)})
