"""Fresh processes: their stages, their memory, their text, and what happens when they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_asr.benchmark import fresh_process
from edge_asr.benchmark.audio_clips import Recording
from edge_asr.benchmark.fresh_process import cold_start, hash_texts, run_fresh
from edge_asr.benchmark.schema import COLD_STAGES
from edge_asr.errors import BackendError, GateError
from edge_asr.runtime.recognizer import Recognizer

RATE = 16_000


def load(bundle: Path, precision: str = "fp32") -> dict[str, object]:
    return {"path_or_name": str(bundle), "precision": precision, "backend": "cpu", "num_threads": 1}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fresh_process_gives_the_text_of_this_one(random_bundle: Path, tmp_path: Path, batch: int) -> None:
    clips = Recording.load(None, RATE).clips(1.0, batch)
    run = run_fresh(load(random_bundle), clips, RATE, tmp_path)
    with Recognizer.load(random_bundle, num_threads=1) as plain:
        texts = [t.text for t in plain.transcribe_batch([(clip, RATE) for clip in clips])]
    assert run.texts == tuple(texts)
    assert run.text_sha256 == hash_texts(texts)
    stages = run.stages_s()
    assert tuple(stages) == COLD_STAGES
    assert min(stages.values()) > 0
    assert sum(stages[name] for name in COLD_STAGES[:5]) == pytest.approx(stages["to_first_text"])
    record = cold_start([run, run], 1.0, 5.0)
    assert (record.n_runs, record.warm_ms) == (2, 5.0)
    summary = record.stages["first"].summary
    assert summary is not None
    assert summary.n == 2


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_that_of_the_child_alone(random_bundle: Path, tmp_path: Path) -> None:
    ballast = np.ones(60_000_000, np.float32)  # 240 MB in this process, which getrusage would hand down
    clips = Recording.load(None, RATE).clips(1.0, 1)
    memory = run_fresh(load(random_bundle), clips, RATE, tmp_path).memory
    assert memory.imported_rss_bytes is not None
    assert memory.loaded_rss_bytes is not None
    assert memory.peak_rss_bytes is not None
    assert (
        10e6 < memory.imported_rss_bytes <= memory.loaded_rss_bytes <= memory.peak_rss_bytes < ballast.nbytes
    )
    assert (memory.gpu_bytes, memory.gpu_reason) == (None, "backend cpu uses no GPU")


def test_an_error_of_the_child_is_ours(random_bundle: Path, tmp_path: Path) -> None:
    clips = Recording.load(None, RATE).clips(1.0, 1)
    with pytest.raises(BackendError, match="has no int8 model"):
        run_fresh(load(random_bundle, "int8"), clips, RATE, tmp_path)


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("raise SystemExit('out of luck')", BackendError, "exit code 1: out of luck"),
        ("pass", BackendError, "exit code 0"),
        (
            'print(\'{"texts": [["a"], ["b"]], "rss_bytes": [1, 1, 1], "at_s": [1, 2, 3, 4, 5, 6]}\')',
            GateError,
            "one text and then another",
        ),
    ],
)
def test_a_child_that_dies_or_wavers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(fresh_process, "_CHILD", code)
    with pytest.raises(error, match=words):
        run_fresh({}, [np.zeros(8, np.float32)], RATE, tmp_path)


def test_nothing_heavy_is_imported_to_measure() -> None:
    code = (
        "import sys, edge_asr.benchmark.run, edge_asr.benchmark.report, edge_asr.benchmark.compare\n"
        "print(sorted({'torch', 'onnx', 'matplotlib', 'jiwer', 'pynvml', 'jtop', 'edge_asr.export', "
        "'edge_asr.model', 'edge_asr.calibration'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
