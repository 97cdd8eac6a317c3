"""`edge-asr inspect`: bundles and checkpoints, whole and damaged."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open


def test_bundle_json_is_the_bundle(run, random_bundle) -> None:
    result = run("inspect", random_bundle, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    written = json.loads((random_bundle / "bundle.json").read_text())
    assert found["kind"] == "bundle"
    assert {key: found[key] for key in written} == written
    assert found["size_bytes"] == sum(f.stat().st_size for f in random_bundle.iterdir())
    assert len(found["tokens"]) == found["vocabulary_size"] == 29


def test_bundle_tables(run, random_bundle) -> None:
    text = run("inspect", random_bundle).stdout
    for expected in ("model.onnx", "fp32", "preset", "nemo", "<blk>", "PyTorch", "max error"):
        assert expected in text


def test_an_altered_artifact_is_named(run, random_bundle, tmp_path) -> None:
    copy = shutil.copytree(random_bundle, tmp_path / "bundle")
    model = copy / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    result = run("inspect", copy)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{model} ({len(data)} bytes) is not the file that bundle.json describes" in result.stderr


def test_an_unverified_bundle_is_shown_as_such(run, random_bundle, tmp_path) -> None:
    copy = shutil.copytree(random_bundle, tmp_path / "bundle")
    data = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps({**data, "verified": False}))
    assert "unverified: it failed its proof" in run("inspect", copy).stdout
    assert run("transcribe", "-m", copy, copy / "none.wav").exit_code == 1


def test_checkpoint_json(run, random_checkpoint) -> None:
    result = run("inspect", random_checkpoint, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    config = json.loads((random_checkpoint / "config.json").read_text())
    assert found["kind"] == "checkpoint"
    assert found["model"] == config["model"]
    assert found["features"] == config["features"]
    assert found["provenance"] == config["provenance"]
    with safe_open(random_checkpoint / "model.safetensors", framework="np") as file:
        assert found["n_tensors"] == len(list(file.keys()))
    from edge_asr.checkpoints import load_any

    n_parameters = sum(p.numel() for p in load_any(random_checkpoint).build_model().parameters())
    assert found["n_parameters"] == n_parameters
    assert f"{n_parameters:,}" in run("inspect", random_checkpoint).stdout


def test_checkpoint_needs_no_torch(random_checkpoint) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
        f"from edge_asr.cli.main import cli; cli.main(['inspect', {str(random_checkpoint)!r}, '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kind"] == "checkpoint"


def broken_checkpoints(folder: Path) -> dict[str, str]:
    """Name of a way to break `folder` -> what the message must say; breaks it."""
    return {
        "truncated": "copy the checkpoint again",
        "not safetensors": "is not a safetensors file",
        "huge header": "is not a safetensors file",
        "no weights": "model.safetensors is missing",
        "config": "config.json is []; it must be an object",
        "model key": "config.json",
    }


@pytest.mark.parametrize("way", broken_checkpoints(Path()))
def test_damaged_checkpoints_are_one_clear_line(run, random_checkpoint, tmp_path, way: str) -> None:
    copy = shutil.copytree(random_checkpoint, tmp_path / "checkpoint")
    weights, config = copy / "model.safetensors", copy / "config.json"
    if way == "truncated":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif way == "not safetensors":
        weights.write_bytes(b"PK")
    elif way == "huge header":
        weights.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    elif way == "no weights":
        weights.unlink()
    elif way == "config":
        config.write_text("[]")
    else:
        data = json.loads(config.read_text())
        data["model"]["d_model"] = -1
        config.write_text(json.dumps(data))
    result = run("inspect", copy)
    assert (result.exit_code, result.stdout) == (1, "")
    assert broken_checkpoints(copy)[way] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_neither_one_nor_the_other(run, tmp_path) -> None:
    assert "is not a bundle" in run("inspect", tmp_path).stderr
    (tmp_path / "file").write_text("x")
    assert "is a file" in run("inspect", tmp_path / "file").stderr
    result = run("inspect", tmp_path / "nothing")
    assert result.exit_code == 1
    assert "no bundle at" in result.stderr


def test_another_projects_checkpoint(run, golden_dir) -> None:
    file = golden_dir / "nemo-fastconformer-streaming" / "model.nemo"
    found = json.loads(run("inspect", file, "--json").stdout)
    assert (found["kind"], found["format"], found["blank_id"]) == ("checkpoint", "nemo", 48)
    assert found["model"]["attention_context"] == [7, 6]
    assert found["output_frames"] == {"factor": 8, "first": -6}
    assert found["streaming"] == {"lookahead_ms": [480.0]}
    assert found["size_bytes"] == file.stat().st_size
    text = run("inspect", file).stdout
    for expected in ("chunked_limited", "NeMo 3.0.0", "edge-asr export"):
        assert expected in text
    asked = json.loads(run("inspect", file, "--json", "--feature-preset", "nemo-2.4").stdout)
    assert asked["features"]["framing"] == "center_reflect"


def test_attention_decoders_of_a_checkpoint(run, golden_dir, tmp_path) -> None:
    """By direction, of another project's and of ours; absent where there is none."""
    from edge_asr.checkpoints import load_any, save_checkpoint

    folder = golden_dir / "wenet-u2pp-decoder"
    loaded = load_any(folder)
    model = loaded.build_model()
    ours = save_checkpoint(
        tmp_path / "ours", model, loaded.features, loaded.vocabulary, {}, facts=loaded.facts
    )
    for path in (folder, ours):
        found = json.loads(run("inspect", path, "--json").stdout)["decoder"]
        for name, decoder in (("left_to_right", model.decoder), ("right_to_left", model.right_decoder)):
            assert found[name] == {
                "kind": "pre_norm",
                "n_layers": decoder.config.n_layers,
                "d_model": 16,
                "n_parameters": sum(parameter.numel() for parameter in decoder.parameters()),
            }
        assert (found["ctc_weight"], found["reverse_weight"]) == (0.3, 0.3)
    text = run("inspect", folder).stdout
    for expected in ("left_to_right", "right_to_left", "reverse_weight: 0.3"):
        assert expected in text
    none = golden_dir / "nemo-conformer-char" / "model.nemo"
    assert json.loads(run("inspect", none, "--json").stdout)["decoder"] is None
    assert "left_to_right" not in run("inspect", none).stdout


def test_what_streams(run, streaming_bundle, random_checkpoint, golden_dir) -> None:
    """Of a bundle the geometry and the file, of a checkpoint what can be asked of `export`."""
    found = json.loads(run("inspect", streaming_bundle, "--json").stdout)
    assert found["streaming"]["geometry"]["chunk_frames"] == 8
    text = run("inspect", streaming_bundle).stdout
    for expected in ("lookahead_ms: 280.0", "pre_encode_cache_frames: 4", "stream.onnx"):
        assert expected in text
    found = json.loads(run("inspect", random_checkpoint, "--json").stdout)
    assert found["streaming"] == {"chunk_ms": "any (when asked, for models trained with chunk masks)"}
    golden = golden_dir
    for name, expected in (
        ("wenet-u2pp", {"chunk_ms": "any (by default)"}),
        ("wenet-conformer", {"impossible": "its convolutions look 15 frames ahead, past the end of a chunk"}),
        ("nemo-fastconformer-local/model.nemo", "per_feature"),
        ("torchaudio-conformer", "no_pos has no cache"),
    ):
        streaming = json.loads(run("inspect", golden / name, "--json").stdout)["streaming"]
        assert streaming == expected or expected in streaming["impossible"]


def test_a_hugging_face_folder_is_not_taken_for_ours(run, golden_dir) -> None:
    found = json.loads(run("inspect", golden_dir / "hf-parakeet", "--json").stdout)
    assert (found["format"], found["vocabulary_size"]) == ("parakeet", 52)
