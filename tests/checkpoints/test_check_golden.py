"""scripts/check_golden.py: which folders are fixtures, what fails a row, what is dumped.

The fixtures are a small model of these tests and what our own PyTorch model makes of it, so they say nothing
about parity (the loaders' tests do): only whether the script finds, judges and reports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import check_golden
import numpy as np
import pytest
import soundfile
import torch
from golden.fixtures import find_fixtures
from make_nemo import changed, write_nemo

from edge_asr.checkpoints import load_any
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor

LENGTHS = (9000, 16000)


def write_fixture(folder: Path, *, lengths: tuple[int, ...] = LENGTHS, **sections: Any) -> dict[str, Any]:
    """A fixture; the arrays of its golden.npz."""
    folder.mkdir(parents=True)
    checkpoint = load_any(write_nemo(folder / "model.nemo", changed(**sections)))
    model, extractor = checkpoint.build_model(), FeatureExtractor(checkpoint.features)
    random = np.random.default_rng(3)
    arrays: dict[str, Any] = {}
    for index, n_samples in enumerate(lengths):
        samples = (random.standard_normal(n_samples) * 3000).astype(np.int16)
        soundfile.write(folder / f"audio_{index}.flac", samples, 16000, subtype="PCM_16")
        features = extractor(samples.astype(np.float32) / 32768)
        with torch.inference_mode():
            log_probs, lens = model(torch.from_numpy(features)[None], torch.tensor([len(features)]))
        # A frame of nonsense behind the end, as the originals return padding.
        arrays[f"clip{index}_feat"] = np.pad(features, ((0, 1), (0, 0)), constant_values=9.0)[None]
        arrays[f"clip{index}_feat_len"] = np.array([len(features)])
        arrays[f"clip{index}_logp"] = log_probs.numpy()
        arrays[f"clip{index}_len"] = lens.numpy()
        arrays[f"clip{index}_ids0"] = greedy_decode(log_probs[0].numpy(), 4).ids
    write_golden(folder, arrays)
    return arrays


def write_golden(folder: Path, arrays: dict[str, Any], info: Any = None) -> None:
    np.savez(folder / "golden.npz", **arrays)
    values = {"family": "nemo", "variant": "small"} if info is None else info
    (folder / "golden.json").write_text(json.dumps(values))


def rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The rows without the runtime; the exit code is 3 then, whatever they say."""
    assert check_golden.main([str(folder), "--torch-only", "--json"]) == 3
    document: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.slow
def test_a_row_passes_through_the_runtime_and_is_dumped(tmp_path: Path) -> None:
    arrays = write_fixture(tmp_path / "set" / "small")
    assert check_golden.main([str(tmp_path / "set"), "--dump", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "small.npz") as dumped:
        assert sorted(dumped) == sorted(f"clip{i}_{kind}" for i in (0, 1) for kind in ("feat", "logp", "ids"))
        for index in (0, 1):
            key, n_frames = f"clip{index}", int(arrays[f"clip{index}_feat_len"][0])
            expected = {
                "feat": arrays[f"{key}_feat"][0, :n_frames],
                "logp": arrays[f"{key}_logp"][0],
                "ids": arrays[f"{key}_ids0"],
            }
            for kind, values in expected.items():
                np.testing.assert_allclose(dumped[f"{key}_{kind}"], values, atol=2e-3, rtol=0)


def test_one_clip_and_log_probs_alone_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = write_fixture(tmp_path / "small", lengths=(9000,))
    kept = {"clip0_feat": arrays["clip0_feat"][:, :-1], "clip0_logp": arrays["clip0_logp"]}
    write_golden(tmp_path / "small", kept, info={})
    for folder in (tmp_path, tmp_path / "small"):  # a folder of fixtures, and one fixture
        (row,) = rows(folder, capsys)
        assert (row["fixture"], row["failures"], row["tokens_torch"]) == ("small", [], True)


def test_fixtures_lie_at_any_depth(tmp_path: Path) -> None:
    for name in ("a/public", "a/hidden", "b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "golden.npz").write_bytes(b"")
    (tmp_path / "b" / "golden.json").write_text("no JSON")
    found = find_fixtures(tmp_path)
    assert [fixture.name for fixture in found] == ["a-hidden", "a-public", "b"]
    assert [fixture.checkpoint for fixture in found] == [None] * 3


def _other_log_probs(folder: Path, arrays: dict[str, Any]) -> None:
    write_golden(folder, {**arrays, "clip1_logp": arrays["clip1_logp"] + 0.002})


def _other_tokens(folder: Path, arrays: dict[str, Any]) -> None:
    write_golden(folder, {**arrays, "clip0_ids0": arrays["clip0_ids0"][:-1]})


def _other_features(folder: Path, arrays: dict[str, Any]) -> None:
    write_golden(folder, {**arrays, "clip0_feat": arrays["clip0_feat"] + 0.001})


def _more_frames(folder: Path, arrays: dict[str, Any]) -> None:
    write_golden(folder, {**arrays, "clip0_feat_len": arrays["clip0_feat_len"] + 1})


def _not_a_number(folder: Path, arrays: dict[str, Any]) -> None:
    write_golden(folder, {**arrays, "clip0_logp": arrays["clip0_logp"] * np.nan})


def _no_sound(folder: Path, arrays: dict[str, Any]) -> None:
    (folder / "audio_1.flac").unlink()


def _no_outputs(folder: Path, arrays: dict[str, Any]) -> None:
    (folder / "golden.npz").unlink()


def _no_checkpoint(folder: Path, arrays: dict[str, Any]) -> None:
    (folder / "model.nemo").unlink()


def _unsupported(folder: Path, arrays: dict[str, Any]) -> None:
    write_nemo(folder / "model.nemo", changed(encoder={"self_attention_model": "abs_pos"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_log_probs, "torch 2.0e-03 is above 1e-03"),
        (_other_tokens, "tokens of torch differ"),
        (_other_features, "feature_max 1.0e-03 is above 5e-04"),
        (_more_frames, "the original has 57 valid frames"),
        (_not_a_number, "torch nan is above"),
        (_no_sound, "1 sound files and outputs of 2 clips"),
        (_no_outputs, "golden.npz"),
        (_no_checkpoint, "no loader recognizes it"),
        (_unsupported, "self_attention_model is 'abs_pos'"),
    ],
)
def test_what_fails_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    damage(tmp_path / "bad", write_fixture(tmp_path / "bad"))
    write_fixture(tmp_path / "good")
    bad, good = rows(tmp_path, capsys)
    assert any(message in failure for failure in bad["failures"]), bad["failures"]
    assert good["failures"] == []


def test_a_batch_is_a_target_where_the_original_keeps_padding_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = write_fixture(tmp_path / "small")
    lens = [int(arrays[f"clip{index}_len"][0]) for index in (1, 0)]
    batch = np.zeros((2, lens[0], 5), np.float32)
    for row, index in enumerate((1, 0)):
        batch[row, : lens[row]] = arrays[f"clip{index}_logp"][0]
    info = {"family": "nemo", "variant": "small", "batch_order": [1, 0]}
    write_golden(tmp_path / "small", {**arrays, "batch_logp": batch, "batch_len": np.array(lens)}, info)
    (row_,) = rows(tmp_path, capsys)
    assert row_["failures"] == []
    assert row_["batch_golden"] <= 1e-4
    batch[1] += 0.1  # the shorter clip is another one in the padded batch
    write_golden(tmp_path / "small", {**arrays, "batch_logp": batch, "batch_len": np.array(lens)}, info)
    (row_,) = rows(tmp_path, capsys)
    assert row_["failures"] == []
    assert row_["batch_golden"] is None


def test_a_folder_without_fixtures_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_golden.main([str(tmp_path)]) == 3
    assert "holds no fixture" in capsys.readouterr().err
