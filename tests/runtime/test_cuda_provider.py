"""onnxruntime on CUDA as we ask for it, with mocked sessions: no CUDA runs here.

The mocked session computes on the CPU provider, so that what is padded, and cut off again, is compared with a
run that pads nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_bundles import assert_agrees, copy_bundle

from edge_asr.bundle.folder import Bundle
from edge_asr.runtime.backends import choose_backend
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend, open_artifact

CUDA = "CUDAExecutionProvider"


class MockedSession:
    """An onnxruntime session that says that it runs on CUDA, and runs on the CPU."""

    made: ClassVar[list[MockedSession]] = []

    def __init__(self, path: str, *, sess_options: Any, providers: Any, **_: Any) -> None:
        self.providers = providers
        self._session = REAL(path, sess_options=sess_options, providers=["CPUExecutionProvider"])
        self.frames: list[int] = []
        self.made.append(self)

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def run(self, names: Any, feeds: Any) -> Any:
        self.frames.append(feeds["audio_signal"].shape[2])
        return self._session.run(names, feeds)


REAL = onnxruntime.InferenceSession


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> type[MockedSession]:
    MockedSession.made = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", MockedSession)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("no libcudnn\n"), raising=False)
    return MockedSession


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_mocked_session_on_cuda_is_asked_for_what_suits_a_recognizer(
    mocked: type[MockedSession],
    tmp_path: Path,
    precision: str,
    tf32: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No search for kernels at every length; float32 in full; what is loaded before prints nothing."""
    bundle = copy_bundle(tmp_path / "bundle", "fp16")
    choose_backend(bundle, precision=precision, backend="cuda").backend.close()
    ((name, options),) = mocked.made[0].providers
    assert name == CUDA
    assert options == {
        "device_id": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": tf32,
    }
    assert capsys.readouterr().out == ""


def test_mocked_session_an_onnxruntime_without_preload(
    mocked: type[MockedSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(onnxruntime, "preload_dlls")
    bundle = Bundle.load("tiny-en")
    open_artifact(bundle, bundle.artifact("fp32"), device="cuda").close()


def test_mocked_session_on_cuda_gets_few_lengths_and_gives_the_same(mocked: type[MockedSession]) -> None:
    bundle = Bundle.load("tiny-en")
    plain = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
    backend = open_artifact(bundle, bundle.artifact("fp32"), device="cuda", num_threads=1)

    def reference(features: Any, lens: list[int]) -> Any:
        return plain.log_probs(features, np.array(lens, np.int64))

    step = 16 * bundle.info.subsampling_factor
    for lens in ([1], [step - 4], [step], [step + 1], [57, 12, 3], [2 * step + 2, 90], [3 * step + 8]):
        assert_agrees(backend, reference, lens)
    assert set(mocked.made[-1].frames) == {step, 2 * step, 3 * step, 4 * step}
    plain.close()
    backend.close()


def test_the_cpu_gets_lengths_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load("tiny-en")
    backend = open_artifact(bundle, bundle.artifact("fp32"), num_threads=1)
    seen: list[int] = []
    run = backend.run
    monkeypatch.setattr(backend, "run", lambda o, f: seen.append(f["audio_signal"].shape[2]) or run(o, f))
    backend.log_probs(np.zeros((1, 65, 80), np.float32), np.array([65]))
    assert seen == [65]
    backend.close()
