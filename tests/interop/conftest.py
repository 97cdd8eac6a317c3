"""What the tests against other runtimes share: the clips both hear, and a bundle with fp16 weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edge_asr.audio import read_audio
from edge_asr.export import CasePlan, export_bundle
from edge_asr.graph.weights import store_weights_as_float16

sys.path.insert(0, str(Path(__file__).parent))  # for golden_tokens

F32Array = npt.NDArray[np.float32]

#: Samples at which a front end, a subsampling stage or a runtime's own arithmetic has an edge.
EDGE_SAMPLES = (1600, 1759, 1760, 1761, 2559, 2560, 2561, 4000, 12_799, 12_800, 12_801, 40_000)


@pytest.fixture(scope="session")
def edge_samples() -> tuple[int, ...]:
    """`EDGE_SAMPLES`."""
    return EDGE_SAMPLES


@pytest.fixture(scope="session")
def speech(sample_path: Path) -> F32Array:
    """The embedded sample, [S] float32 at 16 kHz."""
    return read_audio(sample_path)


@pytest.fixture(scope="session")
def random_bundle_fp16(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What other runtimes read of `random_bundle`, its weights stored as float16."""
    folder = tmp_path_factory.mktemp("interop") / "fp16"
    folder.mkdir()
    for name in ("tokens.txt", "vocab.txt", "config.json"):
        shutil.copy(random_bundle / name, folder)
    model = store_weights_as_float16(onnx.load(random_bundle / "model.onnx"))
    assert any(i.data_type == onnx.TensorProto.FLOAT16 for i in model.graph.initializer)
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.fixture(params=["random_bundle", "random_bundle_fp16"])
def random_folder(request: pytest.FixtureRequest) -> Path:
    """A bundle with random weights, stored as float32 and as float16."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def per_feature_checkpoint(repository: Path) -> Path:
    """The small per-feature normalised model that the repository keeps for these tests."""
    return repository / "tests" / "data" / "per_feature_an4"


@pytest.fixture(scope="session")
def per_feature_bundle(
    per_feature_checkpoint: Path,
    sample_path: Path,
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> Path:
    """It, exported and proven."""
    plan = CasePlan(random_lengths=3, max_random_s=10.0, max_batch=4)
    return made_once(
        "per-feature-an4",
        lambda folder: export_bundle(per_feature_checkpoint, folder, clips=[sample_path], plan=plan),
    )
