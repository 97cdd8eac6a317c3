"""Reading a bundle validates everything and names what is wrong and how to mend it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import Artifact, BundleInfo
from edge_asr.bundle.writer import attach_language_model, write_manifest, write_model
from edge_asr.errors import BundleError
from edge_asr.feature_config import FeatureConfig
from edge_asr.vocabulary import Vocabulary


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    """A bundle whose artifact is plain bytes: reading never opens the graph."""
    vocabulary = Vocabulary.from_characters("ab ")
    (tmp_path / "tokens.txt").write_text(vocabulary.to_token_lines(), encoding="utf-8")
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not a graph")
    artifact = Artifact(
        file="model.onnx",
        precision="fp32",
        weights="fp32",
        sha256=sha256_of(model),
        opset=18,
        ir_version=10,
        size_bytes=model.stat().st_size,
    )
    info = BundleInfo(
        name="test",
        family="conformer-ctc",
        preset=None,
        n_parameters=1,
        features=FeatureConfig.from_preset("nemo"),
        subsampling_factor=4,
        vocabulary_kind="char",
        vocabulary_size=len(vocabulary),
        blank_id=vocabulary.blank_id,
        artifacts=(artifact,),
        source={"checkpoint": "none"},
        verification={},
        verified=True,
        toolkit_version="0",
    )
    (tmp_path / "bundle.json").write_text(json.dumps(info.to_dict()), encoding="utf-8")
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    file = path / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")


def test_round_trip(bundle_path: Path) -> None:
    bundle = Bundle.load(bundle_path)
    assert BundleInfo.from_dict(json.loads(json.dumps(bundle.info.to_dict()))) == bundle.info
    assert bundle.artifact_path("fp32") == bundle_path / "model.onnx"
    with pytest.raises(BundleError, match="no int8 model, it has: fp32"):
        bundle.artifact("int8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format_version": 99}, "format_version is 99"),
        ({"subsampling_factor": 0}, "subsampling_factor is 0"),
        ({"artifacts": []}, "no artifact"),
        ({"vocabulary_size": 9}, "4 tokens"),
        ({"verified": False}, "failed its proof"),
    ],
)
def test_wrong_manifests_are_named(bundle_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(bundle_path, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle_path)


def test_unverified_needs_permission(bundle_path: Path) -> None:
    edit(bundle_path, verified=False)
    assert not Bundle.load(bundle_path, allow_unverified=True).info.verified


def test_altered_and_missing_files_are_named(bundle_path: Path) -> None:
    (bundle_path / "model.onnx").write_bytes(b"not a grapf")
    with pytest.raises(BundleError, match="not the file that bundle"):
        Bundle.load(bundle_path)
    (bundle_path / "model.onnx").unlink()
    with pytest.raises(BundleError, match="is missing"):
        Bundle.load(bundle_path)
    (bundle_path / "tokens.txt").unlink()
    with pytest.raises(BundleError, match=r"no tokens\.txt"):
        Bundle.load(bundle_path)


def test_artifact_may_not_leave_the_folder(bundle_path: Path) -> None:
    data = json.loads((bundle_path / "bundle.json").read_text())
    data["artifacts"][0]["file"] = "../model.onnx"
    edit(bundle_path, artifacts=data["artifacts"])
    with pytest.raises(BundleError, match="plain name"):
        Bundle.load(bundle_path)


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(BundleError, match="embedded models are"):
        Bundle.load("no-such-model")


def test_broken_json(bundle_path: Path) -> None:
    (bundle_path / "bundle.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.load(bundle_path)


# --- damaged and hostile folders ---


def finish(path: Path) -> None:
    """Write bundle.json again as an export does: with the hash of tokens.txt."""
    write_manifest(path, Bundle.load(path).info)


def test_every_flipped_bit_of_the_tokens_is_noticed(bundle_path: Path) -> None:
    finish(bundle_path)
    tokens = bundle_path / "tokens.txt"
    content = tokens.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        tokens.write_bytes(changed)
        with pytest.raises(BundleError, match=r"tokens\.txt"):
            Bundle.load(bundle_path)
    tokens.write_bytes(content)
    Bundle.load(bundle_path)


def test_bundles_without_a_hash_of_the_tokens_still_load(bundle_path: Path) -> None:
    data = json.loads((bundle_path / "bundle.json").read_text())
    del data["tokens_sha256"]
    (bundle_path / "bundle.json").write_text(json.dumps(data))
    assert Bundle.load(bundle_path).info.tokens_sha256 is None


def test_embedded_models_have_a_hash_of_their_tokens() -> None:
    assert Bundle.load("tiny-en").info.tokens_sha256 is not None


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a JSON document, containers included."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


@pytest.mark.parametrize("value", [None, True, 7, -1.5, "text", [], {}, "\ud800", 10**90])
def test_no_value_anywhere_is_a_traceback(bundle_path: Path, value: Any) -> None:
    finish(bundle_path)
    file = bundle_path / "bundle.json"
    whole = json.loads(file.read_text())
    for path in list(leaves(whole)):
        data = json.loads(json.dumps(whole))
        target = data
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        file.write_text(json.dumps(data))
        try:
            Bundle.load(bundle_path)
        except BundleError as error:
            told = str(error)
        else:
            continue
        assert str(bundle_path) in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verified": "false"}, "verified is 'false'; it must be true or false"),
        ({"tokens_sha256": 5}, "tokens_sha256 is 5; it must be text"),
        ({"streaming": []}, "streaming is .*; it must be an object"),
        ({"format_version": True}, "format_version is True"),
        ({"source": {"a": "\ud800"}}, "source.a is .*; it must be text"),
    ],
)
def test_wrong_types_are_named(bundle_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(bundle_path, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle_path)


def test_a_hash_of_null_is_named(bundle_path: Path) -> None:
    data = json.loads((bundle_path / "bundle.json").read_text())
    data["artifacts"][0]["sha256"] = None
    edit(bundle_path, artifacts=data["artifacts"])
    with pytest.raises(BundleError, match=r"bundle\.json: artifacts\[0\]\.sha256 is None; it must be text"):
        Bundle.load(bundle_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000])
def test_deep_and_long_json_is_an_error(bundle_path: Path, text: str) -> None:
    (bundle_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json is"):
        Bundle.load(bundle_path)


@pytest.mark.parametrize("name", ["bundle.json", "tokens.txt"])
def test_huge_files_and_pipes_are_refused_unread(bundle_path: Path, name: str) -> None:
    with (bundle_path / name).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match=f"{name} has {1 << 30} bytes"):
        Bundle.load(bundle_path)
    (bundle_path / name).unlink()
    os.mkfifo(bundle_path / name)
    with pytest.raises(BundleError, match=r"is a pipe|has no tokens"):
        Bundle.load(bundle_path)


def test_a_front_end_that_fills_the_memory_is_refused(bundle_path: Path) -> None:
    features = FeatureConfig.from_preset("nemo").to_dict() | {"hop_length": 1}
    edit(bundle_path, features=features)
    with pytest.raises(BundleError, match="hop_length is 1 at 16000 Hz, more than 1000 frames a second"):
        Bundle.load(bundle_path)


@pytest.mark.parametrize("offset", [0, 5, (1 << 18) - 5, (1 << 18) - 1, (1 << 18) + 3, (2 << 18) - 9])
def test_models_with_weights_elsewhere_are_refused(bundle_path: Path, offset: int) -> None:
    """Wherever in the file the mark of external data lies; blocks of 256 KB are read."""
    model = bundle_path / "model.onnx"
    content = bytearray(3 << 18)
    content[offset : offset + 10] = b"\x0a\x08location"
    model.write_bytes(content)
    artifact = json.loads((bundle_path / "bundle.json").read_text())["artifacts"][0]
    edit(bundle_path, artifacts=[artifact | {"sha256": sha256_of(model), "size_bytes": len(content)}])
    with pytest.raises(BundleError, match="weights in another file"):
        Bundle.load(bundle_path)


def test_external_data_as_onnx_writes_it_is_refused(bundle_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.ones(1000, np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", 1, [1000])],
        [weight],
    )
    model, file = onnx.helper.make_model(graph), bundle_path / "model.onnx"
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    artifact = json.loads((bundle_path / "bundle.json").read_text())["artifacts"][0]
    changes = {"sha256": sha256_of(file), "size_bytes": file.stat().st_size}
    edit(bundle_path, artifacts=[artifact | changes])
    with pytest.raises(BundleError, match="weights in another file"):
        Bundle.load(bundle_path)
    with pytest.raises(BundleError, match="the fp32 model keeps w and 0 more tensors in another file"):
        write_model(bundle_path, onnx.load(file, load_external_data=False), "fp32", "fp32")


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(BundleError, match="no bundle at ''"):
        Bundle.load("")


def test_a_language_model_is_attached_proven_and_taken_out(bundle_path: Path, tmp_path_factory: Any) -> None:
    model = tmp_path_factory.mktemp("lm") / "english.bin"
    model.write_bytes(b"likely words")
    assert Bundle.load(bundle_path).language_model_path is None
    attach_language_model(Bundle.load(bundle_path), model)
    attach_language_model(Bundle.load(bundle_path), model)  # in the place of the first
    bundle = Bundle.load(bundle_path)
    assert bundle.language_model_path == bundle_path / "lm.bin"
    assert bundle.language_model_path.read_bytes() == b"likely words"
    bundle.language_model_path.write_bytes(b"likely sword")
    with pytest.raises(BundleError, match=r"lm.bin .* is not the file that bundle.json"):
        Bundle.load(bundle_path)
    bundle.language_model_path.unlink()
    with pytest.raises(BundleError, match=r"lm.bin is missing, though bundle.json lists it"):
        Bundle.load(bundle_path)
    bundle.language_model_path.write_bytes(b"likely words")
    attach_language_model(Bundle.load(bundle_path), None)
    assert Bundle.load(bundle_path).language_model_path is None
    assert not (bundle_path / "lm.bin").exists()
    assert (bundle_path / "model.onnx").read_bytes() == b"not a graph"
    edit(bundle_path, language_model={"file": "../lm.bin", "sha256": "", "size_bytes": 1})
    with pytest.raises(BundleError, match="must be a plain name inside the bundle folder"):
        Bundle.load(bundle_path)
