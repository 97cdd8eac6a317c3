"""A model small enough to export in seconds, whose text still changes from frame to frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import soundfile
import torch
from speechlike import make_speechlike

from edge_asr.checkpoints import load_checkpoint, save_checkpoint
from edge_asr.export import CasePlan, float32
from edge_asr.export.fold import fold_batch_norm
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import simplify_graph
from edge_asr.feature_config import FeatureConfig
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.runtime.engine.sidecar import DeviceIdentity
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]  # the fixture of tests/conftest.py
SMALL_PLAN = CasePlan(random_lengths=2, max_random_s=4.0, max_batch=3)


def make_model(**overrides: Any) -> ConformerCTC:
    """Random weights, seed 0, with norm statistics and a head that make neither of them trivial."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "n_layers": 2, "subsampling_channels": 8, "vocab_size": 28}
    shape |= {"subsampling_factor": 8, "conv_kernel_size": 9}
    model = ConformerCTC(ConformerConfig.from_preset("tiny", **{**shape, **overrides})).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_(0.0, 0.3)
        features = FeatureExtractor(FeatureConfig.from_preset("nemo"))(make_speechlike(4.0))
        if model.cmvn is not None:
            model.set_cmvn(features.mean(axis=0), features.std(axis=0))
        # Random encoders give nearly the same output for every frame; without its mean the text changes.
        projection = model.head.projection
        outputs: list[torch.Tensor] = []
        hook = projection.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0]))
        model(torch.from_numpy(features[None]), torch.tensor([len(features)]))
        hook.remove()
        projection.weight.mul_(20.0)
        projection.bias.copy_(-projection.weight @ outputs[0].mean(dim=(0, 1)))
    return model


@pytest.fixture(scope="session")
def build_model() -> Callable[..., ConformerCTC]:
    """`make_model`, for tests that need another shape."""
    return make_model


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """27 characters and the blank."""
    return Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz ")


@pytest.fixture(scope="session")
def model() -> ConformerCTC:
    """The tiny preset's structure, but 2 layers wide 32, subsampling x8."""
    return make_model()


@pytest.fixture(scope="session")
def exported(made_once: MadeOnce) -> onnx.ModelProto:
    """`model` as the exporter wrote it; do not change it."""
    return onnx.load(
        made_once(
            "export-exported.onnx",
            lambda path: onnx.save(export_onnx(fold_batch_norm(make_model()), 80), path),
        )
    )


@pytest.fixture(scope="session")
def simplified(exported: onnx.ModelProto, made_once: MadeOnce) -> onnx.ModelProto:
    """`exported` after onnxsim; do not change it."""
    return onnx.load(
        made_once("export-simplified.onnx", lambda path: onnx.save(simplify_graph(exported, 80), path))
    )


@pytest.fixture(scope="session")
def checkpoint_path(
    model: ConformerCTC, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`model` as a float32 checkpoint."""
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    return save_checkpoint(folder, model, FeatureConfig.from_preset("nemo"), vocabulary, {"seed": 0})


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.5 s that sound a little like speech."""
    path = tmp_path_factory.mktemp("clips") / "speechlike.wav"
    soundfile.write(path, make_speechlike(2.5, seed=1), 16_000)
    return path


@pytest.fixture(scope="session")
def export_arguments(checkpoint_path: Path, clip_path: Path) -> Callable[..., dict[str, Any]]:
    """Arguments of `export_bundle` for a small, fast, complete export."""

    def build(output: Path, **changes: Any) -> dict[str, Any]:
        return {
            "checkpoint": load_checkpoint(checkpoint_path),
            "output": output,
            "clips": [clip_path],
            "plan": SMALL_PLAN,
            **changes,
        }

    return build


@pytest.fixture
def quick_export(exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pipeline reuse the graph of this session instead of running torch's exporter again."""
    monkeypatch.setattr(float32, "export_onnx", lambda *args, **kwargs: exported)


@pytest.fixture
def no_gpu() -> DeviceIdentity:
    """A machine without a GPU."""
    return DeviceIdentity(
        gpu_name=None, compute_capability=None, driver=None, jetpack=None, os="linux", arch="x86_64"
    )


@pytest.fixture
def rtx(no_gpu: DeviceIdentity, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """TensorRT-RTX, with whatever GPU this machine has out of sight."""
    module = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (extra: test, Linux x86-64)")
    monkeypatch.setattr(DeviceIdentity, "detect", classmethod(lambda cls: no_gpu))
    return module
