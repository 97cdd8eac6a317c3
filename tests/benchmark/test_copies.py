"""Copies: a reason where there are none, and times from a fake TensorRT on a fake GPU (no real copy)."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from engine_bundles import add_engine, copy_bundle
from fake_tensorrt import FakeGpu

from edge_asr.benchmark.offline import ON_CPU, ON_CUDA, UNKNOWN, time_copies
from edge_asr.errors import BackendError, EngineError
from edge_asr.runtime.engine.backend import TensorRTBackend


def test_other_backends_have_a_reason() -> None:
    for name, reason in (("cpu", ON_CPU), ("cuda", ON_CUDA), ("other", UNKNOWN)):
        backend: Any = types.SimpleNamespace(name=name)
        there, back = time_copies(backend, [(1, 100)], 5)
        assert (there.reason, back.reason) == (reason, reason)


@pytest.mark.parametrize("style", ["8.6", "11", "rtx"])
def test_copies_of_a_fake_engine_leave_its_numbers_alone(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(style).install(monkeypatch)
    bundle = copy_bundle(tmp_path / "bundle")
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32", flavor=gpu.flavor)  # type: ignore[arg-type]
    features = np.random.default_rng(0).standard_normal((6, 90, 80), np.float32)
    lens = np.full(6, 90, np.int64)
    before = [backend.log_probs(features, lens) for _ in range(3)]
    gpu.calls.clear()
    there, back = time_copies(backend, [(6, 90), (1, 20)], 4)
    # Six rows are two runs of at most four; each copies features and lengths there, log-probs back.
    assert gpu.calls.count("copy to device") == 4 * (2 + 1) * 2
    assert gpu.calls.count("copy to host") == 4 * (2 + 1)
    for times in (there, back):
        assert times.summary is not None
        assert times.summary.n == 4
        assert times.summary.min > 0
    assert all(np.array_equal(backend.log_probs(features, lens), answer) for answer in before)
    with pytest.raises(EngineError, match="fit no profile"):
        backend.time_copies(1, 5000)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.time_copies(1, 20)
    gpu.assert_all_released()
