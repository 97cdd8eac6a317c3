"""ESPnet: golden fixtures, settings that none has against the formulas written out, files, refusals."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from golden_checks import check_fixture, golden_folder
from make_espnet import (
    ESPNET,
    N_MELS,
    D,
    Plain,
    changed,
    clips,
    plain_log_probs,
    random_weights,
    statistics,
    write_espnet,
)
from torch import Tensor

from edge_asr.checkpoints import Checkpoint, LoadOptions, find_loader, load_any
from edge_asr.checkpoints.vocabularies import original_order
from edge_asr.errors import CheckpointError, EdgeAsrError
from edge_asr.runtime.features.extractor import FeatureExtractor


@pytest.mark.parametrize("name", ["espnet-conformer", "espnet-conformer-legacy"])
def test_golden_outputs(golden_dir: Path, name: str) -> None:
    check_fixture(golden_folder(golden_dir, name))


def test_golden_outputs_through_the_runtime(golden_dir: Path, golden_bundle: Callable[[str], Path]) -> None:
    check_fixture(
        golden_folder(golden_dir, "espnet-conformer-legacy"), golden_bundle("espnet-conformer-legacy")
    )


def load(tmp_path: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Checkpoint:
    return load_any(write_espnet(tmp_path / "exp", config, weights))


def rows_of(checkpoint: Checkpoint, features: list[Tensor], **chunks: Any) -> list[Tensor]:
    """Valid log-probs of each clip in one padded batch, in the original's order."""
    batch = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=7.0)
    with torch.no_grad():
        log_probs, lens = checkpoint.build_model()(
            batch, torch.tensor([len(clip) for clip in features]), **chunks
        )
    blank = checkpoint.source_blank_id
    return [
        torch.from_numpy(original_order(row[:n].numpy(), blank))
        for row, n in zip(log_probs, lens.tolist(), strict=True)
    ]


ENCODER = {"rel_pos_type": "latest"}
VARIANTS: list[tuple[dict[str, Any], Plain]] = [
    ({}, Plain(attention="legacy")),
    ({"rel_pos_type": "legacy", "max_pos_emb_len": 9}, Plain(attention="legacy", table=9)),
    (ENCODER, Plain()),
    (
        {**ENCODER, "macaron_style": False, "activation_type": "relu", "input_layer": "conv2d6"},
        Plain(macaron=False, activation="relu", input_layer="conv2d6"),
    ),
    (
        {"input_layer": "conv2d8", "activation_type": "gelu", "cnn_module_kernel": 9},
        Plain(attention="legacy", input_layer="conv2d8", activation="gelu", kernel=9),
    ),
    (
        {"pos_enc_layer_type": "legacy_rel_pos", "selfattention_layer_type": "legacy_rel_selfattn"},
        Plain(attention="legacy"),
    ),
    ({"zero_triu": True, "qk_norm": True}, Plain(attention="legacy")),  # of other attentions
    (
        {**ENCODER, "input_layer": "conv2d1", "activation_type": "tanh"},
        Plain(input_layer="conv2d1", activation="tanh"),
    ),
    (
        {**ENCODER, "input_layer": "conv2d2", "activation_type": "selu"},
        Plain(input_layer="conv2d2", activation="selu"),
    ),
    (
        {**ENCODER, "input_layer": "linear", "activation_type": "hardtanh"},
        Plain(input_layer="linear", activation="hardtanh"),
    ),
    (
        {**ENCODER, "pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
        Plain(attention="plain", added=True),
    ),
]


@pytest.mark.parametrize(("encoder", "plain"), VARIANTS)
def test_variants_against_the_formulas(tmp_path: Path, encoder: dict[str, Any], plain: Plain) -> None:
    """Each row of a padded batch as the plain encoder gives it alone; float32 over two layers: 1e-4."""
    plain = Plain(**{**{name: getattr(plain, name) for name in Plain.__slots__}, "eps": 1e-12})
    weights = random_weights(plain)
    checkpoint = load(tmp_path, changed(ESPNET, encoder_conf=encoder), weights)
    features = clips((83, 15, 40, 61))
    for row, clip in zip(rows_of(checkpoint, features), features, strict=True):
        expected = plain_log_probs(plain, weights, clip)
        assert row.shape == expected.shape
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)


def test_legacy_positions_differ_from_the_latest(tmp_path: Path) -> None:
    """The two share all names, so only the setting tells; it must matter."""
    plain = Plain(attention="legacy", eps=1e-12)
    weights, (clip,) = random_weights(plain), clips((60,))
    latest = plain_log_probs(Plain(eps=1e-12), weights, clip)
    assert float((plain_log_probs(plain, weights, clip) - latest).abs().max()) > 0.05


@pytest.mark.parametrize("source", ["weights", "npz", "npy"])
@pytest.mark.parametrize(("means", "variances"), [(True, True), (True, False), (False, True)])
def test_global_mvn(tmp_path: Path, source: str, means: bool, variances: bool) -> None:
    total, squares, count = statistics()
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    plain = Plain(eps=1e-12)
    weights = random_weights(plain)
    given = dict(weights)
    folder = tmp_path / "exp"
    folder.mkdir()
    if source == "weights":
        given["normalize.mean"], given["normalize.std"] = (torch.tensor(v).float() for v in (mean, std))
    elif source == "npz":
        np.savez(folder / "feats_stats.npz", count=count, sum=total, sum_square=squares)
    else:
        with (folder / "feats_stats.npz").open("wb") as handle:
            np.save(handle, np.stack([np.append(total, count), np.append(squares, 0.0)]))
    stats = {"stats_file": "/train/exp/feats_stats.npz", "norm_means": means, "norm_vars": variances}
    config = changed(ESPNET, encoder_conf=ENCODER, normalize="global_mvn", normalize_conf=stats)
    checkpoint = load(tmp_path, config, given)
    (clip,) = features = clips((50,))
    normalized = clip - torch.tensor(mean).float() if means else clip
    normalized = normalized / torch.tensor(std).float() if variances else normalized
    (row,) = rows_of(checkpoint, features)
    torch.testing.assert_close(row, plain_log_probs(plain, weights, normalized), atol=1e-4, rtol=0)
    assert (source == "weights") != any("stats" in note for note in checkpoint.notes)


def librosa_mel(rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, htk: bool) -> Tensor:
    """librosa.filters.mel with its default norm, filter by filter, (n_mels, bins)."""

    def to_mel(f: float) -> float:
        if htk:
            return 2595.0 * math.log10(1.0 + f / 700.0)
        return f * 3 / 200 if f < 1000.0 else 15.0 + math.log(f / 1000.0) / (math.log(6.4) / 27.0)

    def to_hz(m: float) -> float:
        if htk:
            return 700.0 * (10.0 ** (m / 2595.0) - 1.0)
        return m * 200 / 3 if m < 15.0 else 1000.0 * math.exp(math.log(6.4) / 27.0 * (m - 15.0))

    low, high = to_mel(f_min), to_mel(f_max)
    edges = [to_hz(low + (high - low) * i / (n_mels + 1)) for i in range(n_mels + 2)]
    filters = torch.zeros(n_mels, n_fft // 2 + 1, dtype=torch.float64)
    for band in range(n_mels):
        left, center, right = edges[band : band + 3]
        for number in range(n_fft // 2 + 1):
            f = number * rate / n_fft
            weight = max(0.0, min((f - left) / (center - left), (right - f) / (right - center)))
            filters[band, number] = weight * 2.0 / (right - left)
    return filters


@pytest.mark.parametrize(
    ("settings", "normalize", "normalize_conf"),
    [
        ({}, None, {}),
        ({"hop_length": 128, "n_fft": 400}, "utterance_mvn", {"norm_vars": True}),
        ({"fs": 8000, "n_fft": 256, "win_length": 200, "hop_length": 80, "fmin": 60, "fmax": 3800},
         "utterance_mvn", {}),
        ({"htk": True, "window": "hamming", "win_length": 400}, "utterance_mvn", {"norm_means": False}),
        ({"window": None, "win_length": 320, "normalized": True}, None, {}),
        ({"win_length": 401}, "utterance_mvn", {"norm_means": False, "norm_vars": True}),
        ({"center": False}, None, {}),
        ({"fs": "16k", "window": "blackman", "fmin": None, "fmax": None, "win_length": None}, None, {}),
    ],
)  # fmt: skip
def test_front_end_against_its_formulas(
    tmp_path: Path, settings: dict[str, Any], normalize: str | None, normalize_conf: dict[str, Any]
) -> None:
    """torch.stft in float64, librosa's filters written out; the issue's tolerances."""
    conf = {**ESPNET["frontend_conf"], **settings}
    config = changed(ESPNET, normalize=normalize, normalize_conf=normalize_conf)
    config["frontend_conf"] = conf
    checkpoint = load(tmp_path, config, random_weights(Plain(attention="legacy")))
    rate = checkpoint.features.sample_rate
    generator = torch.Generator().manual_seed(2)
    waveform = 0.1 * torch.randn(rate, generator=generator, dtype=torch.float64)
    n_fft = conf.get("n_fft", 512)
    win = conf.get("win_length") or n_fft
    name = conf.get("window", "hann")
    window = torch.ones(win) if name is None else getattr(torch, f"{name}_window")(win)
    spectrum = torch.stft(
        waveform, n_fft, conf["hop_length"], win, window.double(), pad_mode="reflect",
        center=conf.get("center", True),
        normalized=conf.get("normalized", False), return_complex=True,
    )  # fmt: skip
    f_max = conf.get("fmax") or rate / 2
    filters = librosa_mel(rate, n_fft, N_MELS, conf.get("fmin") or 0.0, f_max, conf.get("htk", False))
    expected = (filters @ spectrum.abs() ** 2).clamp(min=1e-10).log().T
    if normalize:
        deviation = expected.std(0, correction=0)
        if normalize_conf.get("norm_means", True):
            expected = expected - expected.mean(0)
        if normalize_conf.get("norm_vars"):
            expected = expected / deviation
    given = FeatureExtractor(checkpoint.features)(waveform.float().numpy())
    assert given.shape == expected.shape
    errors = np.abs(given - expected.numpy())
    assert errors.max() <= 5e-4
    assert errors.mean() <= 1e-5


def test_filters_of_other_settings_are_refused(tmp_path: Path) -> None:
    weights = random_weights(Plain(attention="legacy"))
    weights["frontend.logmel.melmat"] = librosa_mel(16000, 512, N_MELS, 0.0, 8000.0, False).T.float()
    load(tmp_path, ESPNET, weights)
    with pytest.raises(CheckpointError, match=r"frontend\.logmel\.melmat is not what frontend_conf says"):
        load(tmp_path, changed(ESPNET, frontend_conf={"fmax": 7600}), weights)


@pytest.mark.parametrize(
    ("kind", "tokens", "ids", "text", "vocabulary_kind"),
    [
        ("char", ["<blank>", "<unk>", "<space>", "A", "B", "C", "<sos/eos>"], [2, 1, 3], "A B", "char"),
        ("char", ["<blank>", "<unk>", "<space>", "A", "Bc", "C", "<e>"], [2, 1, 3], "A Bc", "sentencepiece"),
        ("bpe", list(ESPNET["token_list"]), [1, 2, 4], "ABC", "sentencepiece"),
        ("word", ["<blank>", "<unk>", "YES", "NO", "UP", "GO", "<eos>"], [1, 2], "YES NO", "sentencepiece"),
    ],
)  # fmt: skip
def test_tokens(
    tmp_path: Path, kind: str, tokens: list[str], ids: list[int], text: str, vocabulary_kind: str
) -> None:
    config = changed(ESPNET, token_type=kind, token_list=tokens)
    vocabulary = load(tmp_path, config, random_weights(Plain(attention="legacy"))).vocabulary
    assert (vocabulary.kind, vocabulary.blank_id) == (vocabulary_kind, len(tokens) - 1)
    assert vocabulary.decode(ids) == text


def test_a_packed_folder_an_experiment_and_a_file(tmp_path: Path) -> None:
    weights = random_weights(Plain(attention="legacy"))
    folder = write_espnet(tmp_path / "packed" / "exp" / "asr", ESPNET, weights)
    packed = tmp_path / "packed"
    meta = {
        "files": {"asr_model_file": "exp/asr/valid.acc.ave.pth"},
        "yaml_files": {"asr_train_config": "exp/asr/config.yaml"},
    }
    (packed / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")
    for path in (packed, folder, folder / "valid.acc.ave.pth"):
        loader = find_loader(path)
        assert loader is not None
        assert loader.name == "espnet"
        checkpoint = load_any(path)
        assert (checkpoint.provenance["file"], checkpoint.source_blank_id) == ("valid.acc.ave.pth", 0)
    shutil.copy(folder / "valid.acc.ave.pth", folder / "3epoch.pth")
    assert any("Of 2 .pth files" in note for note in load_any(folder).notes)
    (folder / "valid.acc.ave.pth").rename(folder / "4epoch.pth")
    with pytest.raises(CheckpointError, match=r"3epoch\.pth, 4epoch\.pth; name one"):
        load_any(folder)
    with pytest.raises(CheckpointError, match=r"lacks exp/asr/valid\.acc\.ave\.pth"):
        load_any(packed)
    meta["files"]["asr_model_file"] = "../../other.pth"
    (packed / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        load_any(packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "branchformer"}, r"encoder is 'branchformer'.*conformer"),
        ({"frontend": "s3prl"}, "frontend is 's3prl'"),
        ({"model": "maskctc"}, "model is 'maskctc'"),
        ({"use_adapter": True}, "use_adapter is True"),
        ({"preencoder": "linear"}, "preencoder is 'linear'"),
        ({"postencoder": "hugging_face_transformers"}, "postencoder"),
        ({"input_size": 80}, "input_size is 80"),
        ({"speech_volume_normalize": 1.0}, "speech_volume_normalize is 1.0"),
        ({"normalize": "sliding"}, "normalize is 'sliding'"),
        ({"normalize_conf": {"norm_vars": True, "eps": 1e-3}}, "eps is 0.001"),
        ({"normalize_conf": {"eps2": 1}}, "unknown setting 'eps2'"),
        ({"normalize": "global_mvn"}, "names no stats_file"),
        ({"normalize": "global_mvn", "normalize_conf": {"stats_file": "a.npz"}}, r"lacks a\.npz"),
        ({"model_conf": {"ctc_weight": 0.0}}, "ctc_weight is 0"),
        ({"model_conf": {"sym_blank": "<b>"}}, "sym_blank"),
        ({"token_type": "hugging_face"}, "token_type is 'hugging_face'"),
        ({"token_list": ["<unk>", "<blank>"]}, r"token_list\[0\] is '<unk>'"),
        ({"token_list": ["<blank>", True]}, "must list tokens"),
        ({"token_list": ["<blank>", "a", "b"]}, "weights do not fit the settings"),
        ({"something_new": 1}, "unknown setting 'something_new'"),
        ({"frontend_conf": {"frontend_conf": {"use_wpe": True}}}, "use_wpe is True"),
        ({"frontend_conf": {"window": "kaiser"}}, "window is 'kaiser'"),
        ({"frontend_conf": {"center": False, "win_length": 400}}, r"center is False.* 400\)"),
        ({"frontend_conf": {"fs": "fast"}}, "fs is 'fast'"),
        ({"frontend_conf": {"n_mels": 40}}, "weights do not fit the settings"),
        ({"frontend_conf": {"colour": 1}}, "unknown setting 'colour'"),
        ({"encoder_conf": {"input_layer": "embed"}}, "input_layer is 'embed'"),
        ({"encoder_conf": {"use_cnn_module": False}}, "use_cnn_module is False"),
        ({"encoder_conf": {"normalize_before": False}}, "normalize_before is False"),
        ({"encoder_conf": {"concat_after": True}}, "concat_after is True"),
        ({"encoder_conf": {"positionwise_layer_type": "conv1d"}}, "positionwise_layer_type is 'conv1d'"),
        ({"encoder_conf": {"pos_enc_layer_type": "abs_pos"}}, "pos_enc_layer_type is 'abs_pos'"),
        ({"encoder_conf": {"selfattention_layer_type": "lf_selfattn"}}, "selfattention_layer_type"),
        ({"encoder_conf": {"rel_pos_type": "newest"}}, "rel_pos_type is 'newest'"),
        ({"encoder_conf": {"interctc_use_conditioning": True}}, "interctc_use_conditioning is True"),
        ({"encoder_conf": {"rel_pos_type": "latest", "zero_triu": True}}, "zero_triu is True"),
        (
            {
                "encoder_conf": {
                    "pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn", "qk_norm": True
                }
            },
            "qk_norm is True",
        ),
        ({"encoder_conf": {"activation_type": "elu"}}, "activation_type is 'elu'"),
        ({"encoder_conf": {"attention_heads": 5}}, "n_heads"),
        ({"encoder_conf": {"new_trick": True}}, "unknown setting 'new_trick'"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    weights = random_weights(Plain(attention="legacy"))
    with pytest.raises(EdgeAsrError, match=message):
        load(tmp_path, changed(ESPNET, **change), weights)


def test_weights_left_over_or_missing_are_refused(tmp_path: Path) -> None:
    weights = random_weights(Plain(attention="legacy"))
    with pytest.raises(CheckpointError, match=r"does not know \(encoder\.conditioning_layer\.weight\)"):
        load(tmp_path, ESPNET, {**weights, "encoder.conditioning_layer.weight": torch.ones(D, D)})
    del weights["ctc.ctc_lo.bias"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'ctc\.ctc_lo\.bias'"):
        load(tmp_path, ESPNET, weights)
    with pytest.raises(CheckpointError, match="feature preset 'nemo'"):
        load_any(tmp_path / "exp", LoadOptions(feature_preset="nemo"))
