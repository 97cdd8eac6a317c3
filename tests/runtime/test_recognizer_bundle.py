"""Recognizer and backend on a real exported graph (random weights): shapes, lengths, errors, memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from edge_asr.bundle.folder import Bundle
from edge_asr.errors import BackendError, BundleError, MissingDependencyError
from edge_asr.runtime.backends import create_backend
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer


@pytest.fixture(scope="module")
def bundle(random_bundle: Path) -> Bundle:
    return Bundle.load(random_bundle)


def noise(n_samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def test_log_probs_of_a_padded_batch(bundle: Bundle) -> None:
    backend = create_backend(bundle, backend="cpu", num_threads=1)
    assert (backend.name, backend.precision) == ("cpu", "fp32")
    lens = np.array([1, 8, 9, 57, 64], np.int64)
    features = np.random.default_rng(0).normal(0, 1, (5, 64, 80)).astype(np.float32)
    batched = backend.log_probs(features, lens)
    factor = bundle.info.subsampling_factor
    assert batched.dtype == np.float32
    assert batched.shape == (5, -(-64 // factor), len(bundle.vocabulary))
    np.testing.assert_allclose(np.exp(batched).sum(axis=2), 1.0, atol=1e-4)
    for row, n in enumerate(lens.tolist()):
        alone = backend.log_probs(features[row : row + 1, :n], np.array([n], np.int64))[0]
        np.testing.assert_allclose(batched[row, : -(-n // factor)], alone, atol=1e-5)


def test_long_recordings_agree_with_their_file(bundle: Bundle, tmp_path: Path) -> None:
    with Recognizer.load(bundle.path, backend="cpu", num_threads=1) as recognizer:
        waveform = noise(16000 * 60)
        path = tmp_path / "minute.wav"
        soundfile.write(path, waveform, 16000, subtype="FLOAT")
        transcript = recognizer.transcribe(waveform, 16000)
        assert recognizer.transcribe_file(path) == transcript
        assert transcript.duration_s == 60.0
        ends = [token.end_s for token in transcript.tokens]
        assert ends == sorted(ends)
        assert all(end <= 60.0 for end in ends)


@pytest.mark.parametrize("n_samples", [0, 1, 160, 1280, 16000])
def test_short_recordings(bundle: Bundle, n_samples: int) -> None:
    with Recognizer.load(bundle.path, backend="cpu", num_threads=1) as recognizer:
        assert recognizer.transcribe(noise(n_samples), 16000).duration_s == n_samples / 16000


def test_threads_share_a_recognizer(bundle: Bundle) -> None:
    clips = [noise(12000 + 1700 * index, index) for index in range(12)]
    with Recognizer.load(bundle.path, backend="cpu", num_threads=1) as recognizer:
        expected = [recognizer.transcribe(clip, 16000) for clip in clips]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda clip: recognizer.transcribe(clip, 16000), clips)) == expected


def test_a_closed_backend_says_so(bundle: Bundle) -> None:
    backend = create_backend(bundle, backend="cpu", num_threads=1)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.log_probs(np.zeros((1, 8, 80), np.float32), np.array([8], np.int64))


def test_wrong_features_are_a_backend_error(bundle: Bundle) -> None:
    backend = create_backend(bundle, backend="cpu", num_threads=1)
    with pytest.raises(BackendError, match=r"\[1, 8, 79\]"):
        backend.log_probs(np.zeros((1, 8, 79), np.float32), np.array([8], np.int64))


def test_names_that_do_not_exist(bundle: Bundle) -> None:
    known = "'openvino' is unknown; use one of auto, tensorrt, tensorrt-rtx, cuda, cpu"
    with pytest.raises(BackendError, match=known):
        create_backend(bundle, backend="openvino")
    with pytest.raises(BackendError, match="'fp8' is unknown"):
        create_backend(bundle, precision="fp8")
    with pytest.raises(BackendError, match="num_threads is 0"):
        create_backend(bundle, backend="cpu", num_threads=0)
    missing = next(p for p in ("int8", "fp16") if p not in {a.precision for a in bundle.info.artifacts})
    with pytest.raises(BundleError, match=f"no {missing} model"):
        create_backend(bundle, precision=missing)


def test_cuda_by_name_never_falls_back(bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA; the refusal is for those that lack it")
    with pytest.raises(BackendError, match=r"'cuda' needs CUDAExecutionProvider.*edge-asr\[gpu\]"):
        create_backend(bundle, backend="cuda")
    assert create_backend(bundle, backend="auto", num_threads=1).name == "cpu"


def test_a_broken_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BackendError, match=r"cannot load .*model\.onnx"):
        OnnxRuntimeBackend(path, precision="fp32")


@pytest.mark.parametrize("byte", [8, -1000], ids=["not a graph any more", "another weight"])
def test_an_altered_file_is_told_from_a_broken_one(bundle: Bundle, tmp_path: Path, byte: int) -> None:
    """Hashes are taken while onnxruntime loads, which may fail first."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.path, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[byte] ^= 0x40
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"is not the file that bundle\.json describes"):
        Recognizer.load(folder, backend="cpu")


def test_without_onnxruntime_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"edge-asr\[cpu\]"):
        create_backend(bundle)


# Not ru_maxrss: a child inherits that of the process that started it.
_MEASURE = """
import re, sys
from edge_asr.runtime.recognizer import Recognizer
with Recognizer.load(sys.argv[1], backend="cpu", num_threads=2) as recognizer:
    transcript = recognizer.transcribe_file(sys.argv[2])
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(transcript.duration_s, peak_kib / 1024)
"""


@pytest.mark.slow
def test_an_hour_stays_under_600_mb(bundle: Bundle, tmp_path: Path) -> None:
    """Resampled from 24 kHz stereo, through every stage, in a process of its own."""
    path = tmp_path / "hour.wav"
    block = np.stack([noise(24000 * 60), noise(24000 * 60, 1)], axis=1)
    with soundfile.SoundFile(path, "w", 24000, 2, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(block)
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(bundle.path), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    duration_s, resident_mib = map(float, result.stdout.split())
    assert duration_s == 3600.0
    assert resident_mib < 600


_BARE = """
import sys

HIDDEN = ("torch", "onnx", "onnxscript", "onnxsim", "tensorrt", "lightning", "lhotse", "sounddevice")


class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise OSError(f"PortAudio library not found: {name} is hidden by the test")


sys.meta_path.insert(0, Hide())
import edge_asr.runtime
from edge_asr.runtime import *
with edge_asr.runtime.Recognizer.load(sys.argv[1], backend="cpu") as recognizer:
    recognizer.transcribe([0.0] * 16000, 16000)
for name in list(sys.modules):
    assert name.split(".")[0] not in HIDDEN, name
    assert not name.startswith(("edge_asr.export", "edge_asr.calibration", "edge_asr.training")), name
"""


def test_the_runtime_needs_no_heavy_module_and_no_portaudio(bundle: Bundle) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _BARE, str(bundle.path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
