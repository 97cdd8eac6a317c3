"""WeNet: golden fixtures (full context, chunk masks), variants against the formulas, files, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_checks import arrays_of, check_fixture, golden_folder
from make_espnet import (
    N_MELS,
    TOKENS,
    WENET,
    D,
    Plain,
    changed,
    clips,
    plain_log_probs,
    random_weights,
    statistics,
    write_wenet,
)
from torch import Tensor

from edge_asr.checkpoints import Checkpoint, LoadOptions, find_loader, load_any
from edge_asr.checkpoints.vocabularies import original_order
from edge_asr.errors import CheckpointError, EdgeAsrError
from edge_asr.runtime.features.extractor import FeatureExtractor

FIXTURES = ("wenet-conformer", "wenet-u2pp")


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_outputs(golden_dir: Path, name: str) -> None:
    check_with_weak_bands(golden_folder(golden_dir, name))


def test_golden_outputs_through_the_runtime(golden_dir: Path, golden_bundle: Callable[[str], Path]) -> None:
    check_with_weak_bands(golden_folder(golden_dir, "wenet-u2pp"), golden_bundle("wenet-u2pp"))


def check_with_weak_bands(folder: Path, bundle: Path | None = None) -> None:
    """Every bar, and the bands that the largest error leaves to their amplitude one by one.

    There torchaudio's float32 transform is rounding noise (up to 1.6e-3 in the logarithm, as its own float64
    result shows), and which noise depends on the FFT library.
    """
    result = check_fixture(folder, bundle)
    assert result.feature_unweighted is not None
    assert result.feature_unweighted <= 2e-3
    checkpoint, golden = load_any(folder), arrays_of(folder)
    import soundfile

    for index in range(3):
        waveform, _ = soundfile.read(folder.parent / f"audio_{index}.flac", dtype="float32")
        expected = golden[f"clip{index}_feat"][0]
        errors = np.abs(FeatureExtractor(checkpoint.features)(waveform) - expected)
        loud = expected > expected.max(axis=1, keepdims=True) - 16.0
        assert loud.mean() > 0.95
        assert errors[loud].max() <= 3e-4
        assert errors.mean() <= 5e-6


@pytest.mark.parametrize(("key", "left_chunks"), [("stream_16_all", None), ("stream_16_2", 2)])
def test_golden_chunks(golden_dir: Path, key: str, left_chunks: int | None) -> None:
    """A pass with chunk masks gives WeNet's masked pass and, chunk by chunk, its streaming outputs."""
    folder = golden_folder(golden_dir, "wenet-u2pp")
    checkpoint, golden = load_any(folder), arrays_of(folder)
    assert checkpoint.has_dynamic_chunks is True
    features = torch.from_numpy(golden["clip2_feat"])
    with torch.no_grad():
        log_probs, lens = checkpoint.build_model()(
            features, torch.tensor([features.shape[1]]), chunk_frames=16, left_chunks=left_chunks
        )
    ours = original_order(log_probs[0, : int(lens[0])].numpy(), checkpoint.source_blank_id)
    assert np.abs(ours - golden[f"{key}_masked_logp"]).max() <= 1e-3
    n_chunks = sum(name.startswith(f"{key}_logp") for name in golden)
    streamed = np.concatenate([golden[f"{key}_logp{chunk}"] for chunk in range(n_chunks)])
    assert np.abs(ours - streamed).max() <= 1e-3
    full = golden["clip2_logp"][0]
    assert np.abs(ours - full).max() > 0.1, "the chunks change nothing, so the test tells nothing"


def load(tmp_path: Path, config: dict[str, Any], weights: dict[str, Tensor], **units: Any) -> Checkpoint:
    return load_any(write_wenet(tmp_path / "model", config, weights, **units))


def rows_of(checkpoint: Checkpoint, features: list[Tensor], **chunks: Any) -> list[Tensor]:
    """Valid log-probs of each clip in one padded batch, in the original's order."""
    batch = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=7.0)
    lengths = torch.tensor([len(clip) for clip in features])
    with torch.no_grad():
        log_probs, lens = checkpoint.build_model()(batch, lengths, **chunks)
    blank = checkpoint.source_blank_id
    return [
        torch.from_numpy(original_order(row[:n].numpy(), blank))
        for row, n in zip(log_probs, lens.tolist(), strict=True)
    ]


CAUSAL = {"causal": True, "cnn_module_norm": "layer_norm"}
VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"causal": True}, {"causal": True}),
    ({**CAUSAL, "cnn_module_kernel": 8}, {"causal": True, "conv_norm": "layer_norm", "kernel": 8}),
    ({"causal": True, "cnn_module_kernel": 1}, {"causal": True, "kernel": 1}),
    ({"input_layer": "conv2d6", "macaron_style": False}, {"input_layer": "conv2d6", "macaron": False}),
    ({"input_layer": "conv2d8", "activation_type": "gelu"}, {"input_layer": "conv2d8", "activation": "gelu"}),
    ({"final_norm": False, "activation_type": "relu"}, {"after_norm": False, "activation": "relu"}),
    ({"norm_eps": 0.01, "conv_norm_eps": 0.02}, {"eps": 0.01, "conv_eps": 0.02}),
    (
        {"norm_eps": "1e-3", "conv_norm_eps": 1e-3, "cnn_module_norm": "layer_norm"},
        {"eps": 1e-3, "conv_eps": 1e-3, "conv_norm": "layer_norm"},
    ),
    ({"query_bias": False}, {"missing_biases": ("linear_q", "linear_out")}),
    ({"key_bias": False, "value_bias": False}, {"missing_biases": ("linear_k", "linear_v")}),
    (
        {"conv_bias": False, "mlp_bias": False, "causal": True},
        {"missing_biases": ("conv_module", "feed_forward"), "causal": True},
    ),
    (
        {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn", "activation_type": "tanh"},
        {"attention": "plain", "added": True, "activation": "tanh"},
    ),
    (
        {"pos_enc_layer_type": "no_pos", "selfattention_layer_type": "selfattn", "activation_type": "selu"},
        {"attention": "plain", "scaled": False, "activation": "selu"},
    ),
    (
        {"input_layer": "linear", "activation_type": "hardtanh", "norm_eps": 1e-3},
        {"input_layer": "linear", "activation": "hardtanh", "eps": 1e-3},
    ),
    ({"attention_heads": 6, "n_kv_head": 2, "head_dim": 2}, {"heads": 6, "kv_heads": 2}),
    ({"n_kv_head": 1, "head_dim": 4, "key_bias": False}, {"kv_heads": 1, "missing_biases": ("linear_k",)}),
    ({"static_chunk_size": 3, "causal": True}, {"chunk": 3, "causal": True}),
    ({"static_chunk_size": 3, "use_dynamic_chunk": True, "causal": True}, {"causal": True}),
]


@pytest.mark.parametrize(("encoder", "plain"), VARIANTS)
def test_variants_against_the_formulas(
    tmp_path: Path, encoder: dict[str, Any], plain: dict[str, Any]
) -> None:
    """Each row of a padded batch as the plain encoder gives it alone; float32 over two layers: 1e-4."""
    model = Plain(**{"attention": "wenet", "wenet_names": True, **plain})
    weights = random_weights(model)
    checkpoint = load(tmp_path, changed(WENET, encoder_conf=encoder), weights)
    features = clips((83, 15, 40, 61))
    for row, clip in zip(rows_of(checkpoint, features), features, strict=True):
        expected = plain_log_probs(model, weights, clip)
        assert row.shape == expected.shape
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("chunk", "left"), [(1, None), (2, 1), (4, 0), (5, None)])
def test_chunks_against_the_formulas(tmp_path: Path, chunk: int, left: int | None) -> None:
    plain = Plain(attention="wenet", causal=True, conv_norm="layer_norm", chunk=chunk, left_chunks=left)
    weights = random_weights(plain)
    encoder = {**CAUSAL, "use_dynamic_chunk": True}
    checkpoint = load(tmp_path, changed(WENET, encoder_conf=encoder), weights)
    features = clips((83, 40))
    rows = rows_of(checkpoint, features, chunk_frames=chunk, left_chunks=left)
    for row, clip in zip(rows, features, strict=True):
        torch.testing.assert_close(row, plain_log_probs(plain, weights, clip), atol=1e-4, rtol=0)


def test_a_chunk_needs_no_later_frames(tmp_path: Path) -> None:
    """What streaming rests on: outputs of the first chunk are the same whatever comes behind its input."""
    plain = Plain(attention="wenet", causal=True)
    encoder = {"causal": True, "use_dynamic_chunk": True}
    checkpoint = load(tmp_path, changed(WENET, encoder_conf=encoder), random_weights(plain))
    (clip,) = clips((83,))
    (whole,) = rows_of(checkpoint, [clip], chunk_frames=4)
    (begin,) = rows_of(checkpoint, [clip[: (4 - 1) * 4 + 7]], chunk_frames=4)
    assert len(begin) == 4
    torch.testing.assert_close(whole[:4], begin, atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", ["weights", "json", "kaldi"])
@pytest.mark.parametrize("nested", [True, False])
def test_global_cmvn(tmp_path: Path, source: str, nested: bool) -> None:
    total, squares, count = statistics()
    mean = torch.from_numpy(total / count)
    istd = 1.0 / torch.from_numpy(squares / count - (total / count) ** 2).sqrt()
    plain = Plain(attention="wenet")
    weights = random_weights(plain)
    given = dict(weights)
    folder = tmp_path / "model"
    folder.mkdir()
    if source == "weights":
        given["encoder.global_cmvn.mean"], given["encoder.global_cmvn.istd"] = mean.float(), istd.float()
    elif source == "json":
        stats = {"mean_stat": total.tolist(), "var_stat": squares.tolist(), "frame_num": count}
        (folder / "global_cmvn").write_text(json.dumps(stats), encoding="utf-8")
    else:
        lines = [" ".join(map(str, row)) for row in ([*total.tolist(), count], [*squares.tolist(), 0])]
        (folder / "global_cmvn").write_text(f" [\n  {lines[0]}\n  {lines[1]} ]\n", encoding="utf-8")
    settings = {"cmvn_file": "data/train/global_cmvn", "is_json_cmvn": source != "kaldi"}
    config = changed(WENET, cmvn="global_cmvn", cmvn_conf=settings) if nested else changed(WENET, **settings)
    checkpoint = load(tmp_path, config, given)
    (clip,) = features = clips((50,))
    (row,) = rows_of(checkpoint, features)
    expected = plain_log_probs(plain, weights, (clip - mean.float()) * istd.float())
    torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
    assert (source == "weights") != any("global_cmvn" in note for note in checkpoint.notes)


def test_the_layout_of_2021(tmp_path: Path) -> None:
    """Front end in collate_conf, statistics at the top, an unused layer in each block."""
    plain = Plain(attention="wenet", causal=True)
    weights = random_weights(plain)
    given = dict(weights)
    for name in ("encoder.global_cmvn.mean", "encoder.global_cmvn.istd"):
        given[name] = torch.ones(N_MELS)
    for layer in range(2):
        given[f"encoder.encoders.{layer}.concat_linear.weight"] = torch.ones(D, 2 * D)
        given[f"encoder.encoders.{layer}.concat_linear.bias"] = torch.ones(D)
    config = {name: WENET[name] for name in ("encoder", "encoder_conf", "decoder", "input_dim", "output_dim")}
    extraction = {"feature_type": "fbank", "mel_bins": N_MELS, "frame_shift": 12, "frame_length": 30}
    config = changed(
        config,
        encoder_conf={"causal": True},
        cmvn_file="exp/global_cmvn",
        is_json_cmvn=True,
        raw_wav=True,
        collate_conf={"speed_perturb": True, "feature_extraction_conf": {**extraction, "using_pitch": False}},
        dataset_conf={"max_length": 40960, "min_length": 0, "batch_type": "static", "sort": True},
    )
    checkpoint = load(tmp_path, config, given)
    assert (checkpoint.features.hop_length, checkpoint.features.win_length) == (192, 480)
    (clip,) = features = clips((50,))
    (row,) = rows_of(checkpoint, features)
    torch.testing.assert_close(row, plain_log_probs(plain, weights, clip - 1.0), atol=1e-4, rtol=0)


def test_damaged_statistics_are_refused(tmp_path: Path) -> None:
    weights = random_weights(Plain(attention="wenet"))
    settings = {"cmvn_file": "global_cmvn", "is_json_cmvn": False}
    config = changed(WENET, cmvn="global_cmvn", cmvn_conf=settings)
    with pytest.raises(CheckpointError, match="copy global_cmvn along"):
        load(tmp_path, config, weights)
    for content, message in (
        ("[ 1 2 3 4 0", "no CMVN in Kaldi's text form"),
        ("[ 1 x 3 4 0 ]", "could not convert|damaged"),
        ("[ 1 2 3 4 5 6 2 3 0 ]", "no CMVN in Kaldi's text form|shape"),
        ("[ 1 2 3 4 5 0 ]", "no CMVN in Kaldi's text form|shape"),
        ("[ 1 0 4 0 ]", "frames; compute it again"),
    ):
        (tmp_path / "model" / "global_cmvn").write_text(content, encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            load_any(tmp_path / "model")


def kaldi_fbank(
    waveform: Tensor, rate: int, length_ms: float, shift_ms: float, n_mels: int, window: Tensor
) -> Tensor:
    """Kaldi's fbank as torchaudio computes it, without dither, in float64, filter by filter."""
    size, shift = int(rate * length_ms * 0.001), int(rate * shift_ms * 0.001)
    n_fft = 2 ** math.ceil(math.log2(size))
    frames = (waveform.double() * 32768.0).unfold(0, size, shift)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
    power = torch.fft.rfft(frames * window, n_fft).abs() ** 2

    def to_mel(f: float) -> float:
        return 1127.0 * math.log(1.0 + f / 700.0)

    low, high = to_mel(20.0), to_mel(rate / 2)
    step = (high - low) / (n_mels + 1)
    filters = torch.zeros(n_mels, n_fft // 2 + 1, dtype=torch.float64)
    for band in range(n_mels):
        for number in range(n_fft // 2):
            place = (to_mel(number * rate / n_fft) - low) / step - band
            filters[band, number] = max(0.0, min(place, 2.0 - place))
    return (power @ filters.T).clamp(min=torch.finfo(torch.float32).eps).log()


@pytest.mark.parametrize(
    ("fbank", "rate", "window"),
    [
        ({}, 16000, "povey"),
        ({"num_mel_bins": 40, "window_type": "hamming", "frame_length": 20}, 8000, "hamming"),
        ({"num_mel_bins": 23, "window_type": "hanning", "frame_shift": 12.5}, 16000, "hanning"),
        ({"frame_length": 32, "window_type": "rectangular"}, 16000, "rectangular"),
        ({"window_type": "blackman"}, 16000, "blackman"),
    ],
)
def test_front_end_against_its_formulas(
    tmp_path: Path, fbank: dict[str, Any], rate: int, window: str
) -> None:
    dataset = {"fbank_conf": {**WENET["dataset_conf"]["fbank_conf"], **fbank}}
    dataset["resample_conf"] = {"resample_rate": rate}
    n_mels = dataset["fbank_conf"]["num_mel_bins"]
    from edge_asr.checkpoints.safe_yaml import Settings
    from edge_asr.checkpoints.wenet_features import features_from_settings

    features = features_from_settings(Settings(dataset, "dataset_conf"))
    assert (features.sample_rate, features.n_mels) == (rate, n_mels)
    size = int(rate * fbank.get("frame_length", 25) * 0.001)
    shapes = {
        "povey": torch.hann_window(size, periodic=False, dtype=torch.float64) ** 0.85,
        "hanning": torch.hann_window(size, periodic=False, dtype=torch.float64),
        "hamming": torch.hamming_window(size, periodic=False, dtype=torch.float64),
        "rectangular": torch.ones(size, dtype=torch.float64),
        "blackman": torch.blackman_window(size, periodic=False, dtype=torch.float64),
    }
    waveform = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(4))
    expected = kaldi_fbank(
        waveform, rate, fbank.get("frame_length", 25), fbank.get("frame_shift", 10), n_mels, shapes[window]
    )
    given = FeatureExtractor(features)(waveform.numpy())
    assert given.shape == expected.shape
    errors = np.abs(given - expected.numpy())
    assert errors.max() <= 5e-4
    assert errors.mean() <= 1e-5


@pytest.mark.parametrize(
    ("tokenizer", "tokens", "blank_id", "ids", "text", "kind"),
    [
        ("char", ("<blank>", "<unk>", "▁", "A", "B", "C", "<sos/eos>"), 0, [2, 1, 3], "A B", "char"),
        ("char", ("<blank>", "<unk>", "▁AB", "A", "B", "C", "<eos>"), 0, [2, 1, 3], "A ABB", "sentencepiece"),
        ("bpe", TOKENS, 0, [1, 2, 4], "ABC", "sentencepiece"),
        (None, TOKENS, 0, [1, 2, 4], "ABC", "sentencepiece"),
        ("bpe", ("<unk>", "▁A", "B", "<blank>", "▁C", "D", "<eos>"), 3, [1, 2, 3], "AB C", "sentencepiece"),
    ],
)  # fmt: skip
def test_units(
    tmp_path: Path,
    tokenizer: str | None,
    tokens: tuple[str, ...],
    blank_id: int,
    ids: list[int],
    text: str,
    kind: str,
) -> None:
    config = changed(WENET, tokenizer=tokenizer, ctc_conf={"ctc_blank_id": blank_id})
    plain = Plain(attention="wenet")
    weights = random_weights(plain)
    checkpoint = load(tmp_path, config, weights, tokens=tokens)
    assert (checkpoint.vocabulary.kind, checkpoint.source_blank_id) == (kind, blank_id)
    assert checkpoint.vocabulary.decode(ids) == text
    (clip,) = features = clips((40,))
    (row,) = rows_of(checkpoint, features)
    torch.testing.assert_close(row, plain_log_probs(plain, weights, clip), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<blank> 0\nA\n", r"line 2 is 'A'"),
        ("<blank> 0\nA 0\n", "each id once"),
        ("<blank> 0\nA 2\n", "ids are not 0 to 1"),
        ("<blank> 0\nA 1\n", "2 units; use the files of one model"),
    ],
)
def test_damaged_units_are_refused(tmp_path: Path, content: str, message: str) -> None:
    folder = write_wenet(tmp_path / "model", WENET, random_weights(Plain(attention="wenet")))
    (folder / "units.txt").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_any(folder)


def test_files_are_found_and_named(tmp_path: Path) -> None:
    folder = write_wenet(tmp_path / "model", WENET, random_weights(Plain(attention="wenet")))
    for path in (folder, folder / "final.pt"):
        loader = find_loader(path)
        assert loader is not None
        assert loader.name == "wenet"
        assert load_any(path).provenance["file"] == "final.pt"
    (folder / "final.pt").rename(folder / "avg_20.pt")
    assert load_any(folder).provenance["file"] == "avg_20.pt"
    (folder / "avg_30.pt").write_bytes((folder / "avg_20.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"avg_20\.pt, avg_30\.pt; name one"):
        load_any(folder)
    (folder / "units.txt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks units\.txt"):
        load_any(folder / "avg_20.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "e_branchformer"}, "encoder is 'e_branchformer'"),
        ({"model": "paraformer"}, "model is 'paraformer'"),
        ({"cmvn": "other"}, "cmvn is 'other'"),
        ({"tokenizer": "whisper"}, "tokenizer is 'whisper'"),
        ({"lora_conf": {"lora_rank": 8}}, "unknown setting 'lora_conf'"),
        ({"input_dim": 80}, "input_dim 80"),
        ({"dataset_conf": {"feats_type": "log_mel_spectrogram"}}, "feats_type is 'log_mel_spectrogram'"),
        ({"dataset_conf": {"speaker_conf": {"a": 1}}}, "speaker_conf"),
        ({"dataset_conf": {"fbank_conf": {"num_mel_bins": N_MELS, "low_freq": 50}}}, "setting 'low_freq'"),
        ({"dataset_conf": {"fbank_conf": {"window_type": "sine"}}}, "window_type is 'sine'"),
        ({"encoder_conf": {"input_layer": "conv2d2"}}, "input_layer is 'conv2d2'"),
        ({"encoder_conf": {"pos_enc_layer_type": "abs_pos"}}, "edge-asr takes selfattn with abs_pos"),
        ({"encoder_conf": {"pos_enc_layer_type": "rope_pos"}}, "pos_enc_layer_type is 'rope_pos'"),
        ({"encoder_conf": {"selfattention_layer_type": "selfattn"}}, "_layer_type is 'selfattn'"),
        ({"encoder_conf": {"use_cnn_module": False}}, "use_cnn_module is False"),
        ({"encoder_conf": {"normalize_before": False}}, "normalize_before is False"),
        ({"encoder_conf": {"mlp_type": "moe"}}, "mlp_type is 'moe'"),
        ({"encoder_conf": {"n_kv_head": 2, "head_dim": 4}}, "n_kv_head is 2"),
        (
            {"collate_conf": {"feature_extraction_conf": {"using_pitch": True}}, "dataset_conf": None},
            "using_pitch is True",
        ),
        ({"encoder_conf": {"conv_inner_factor": 4}}, "conv_inner_factor is 4"),
        ({"encoder_conf": {"layer_norm_type": "rms_norm"}}, "layer_norm_type is 'rms_norm'"),
        ({"encoder_conf": {"cnn_module_norm": "rms_norm"}}, "cnn_module_norm is 'rms_norm'"),
        ({"encoder_conf": {"cnn_module_norm": "layer_norm", "conv_norm_eps": 1e-3}}, "conv_norm_eps is 0"),
        ({"encoder_conf": {"cnn_module_kernel": 8}}, "must be odd"),
        ({"encoder_conf": {"new_trick": True}}, "unknown setting 'new_trick'"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeAsrError, match=message):
        load(tmp_path, changed(WENET, **change), random_weights(Plain(attention="wenet")))


def test_weights_left_over_or_missing_are_refused(tmp_path: Path) -> None:
    weights = random_weights(Plain(attention="wenet"))
    adapter = "encoder.encoders.0.self_attn.linear_q.lora_A"
    with pytest.raises(CheckpointError, match="tensors that edge-asr does not know"):
        load(tmp_path, WENET, {**weights, adapter: torch.ones(2, D)})
    del weights["encoder.after_norm.bias"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'encoder\.after_norm\.bias'"):
        load(tmp_path, WENET, weights)
    with pytest.raises(CheckpointError, match="feature preset 'kaldi'"):
        load_any(tmp_path / "model", LoadOptions(feature_preset="kaldi"))
