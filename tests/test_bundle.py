"""Reading a bundle validates everything and names what is wrong and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import Artifact, BundleInfo
from edge_asr.errors import BundleError
from edge_asr.feature_config import FeatureConfig
from edge_asr.vocabulary import Vocabulary


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    """A bundle whose artefact is plain bytes: reading never opens the graph."""
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
        ({"artifacts": []}, "no artefact"),
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
