"""Other projects' checkpoints, exported, in other runtimes: onnx-asr gives NeMo's tokens, sherpa-onnx runs.

onnx-asr computes NeMo's features of 2.5 and later and always normalizes per feature, so its tokens must be
the golden ones for offline NeMo models trained so. sherpa-onnx's log-mel is another, which random weights
feel much more than trained ones: its token error rate is only bounded, and logged.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx_asr
import pytest
import sherpa_onnx
import soundfile
from golden_tokens import edit_distance, ids_of

from edge_asr.bundle.folder import Bundle

PER_FEATURE = (
    "nemo-conformer-char",
    "nemo-fastconformer-bpe",
    pytest.param("nemo-conformer-bpe", marks=pytest.mark.slow),
    pytest.param("nemo-fastconformer-local", marks=pytest.mark.slow),
    pytest.param("nemo-fastconformer-local-asym", marks=pytest.mark.slow),
    pytest.param("hf-parakeet", marks=pytest.mark.slow),
)


def golden_clips(golden_dir: Path, name: str) -> list[tuple[np.ndarray, list[int]]]:
    """Waveforms and greedy ids of a fixture's clips."""
    folder = golden_dir / name
    with np.load(folder / "golden.npz") as golden:
        return [
            (soundfile.read(path, dtype="float32")[0], golden[f"clip{i}_ids0"].ravel().tolist())
            for i, path in enumerate(sorted(golden_dir.glob("audio_*.flac")))
        ]


@pytest.mark.parametrize("name", PER_FEATURE)
def test_onnx_asr_gives_the_golden_tokens(golden_bundle, golden_dir: Path, name: str) -> None:
    bundle = Bundle.load(golden_bundle(name))
    assert json.loads((bundle.path / "config.json").read_text())["features_size"] == 80
    model = onnx_asr.load_model("nemo-conformer-ctc", bundle.path).with_timestamps()
    for waveform, expected in golden_clips(golden_dir, name):
        result = model.recognize(waveform, sample_rate=16_000)
        assert ids_of(result.tokens, bundle.vocabulary) == expected


@pytest.mark.parametrize("name", [*PER_FEATURE, "nemo-fastconformer-streaming"])
def test_sherpa_onnx_runs_them(golden_bundle, golden_dir: Path, name: str) -> None:
    bundle = Bundle.load(golden_bundle(name))
    recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        model=str(bundle.artifact_path("fp32")), tokens=str(bundle.path / "tokens.txt"), num_threads=1
    )
    n_errors = n_tokens = 0
    for waveform, expected in golden_clips(golden_dir, name):
        stream = recognizer.create_stream()
        stream.accept_waveform(16_000, waveform)
        recognizer.decode_stream(stream)
        given = ids_of(stream.result.tokens, bundle.vocabulary)
        n_errors += edit_distance(given, expected)
        n_tokens += len(expected)
    logging.getLogger(__name__).info("%s: sherpa-onnx's token error rate %.3f", name, n_errors / n_tokens)
    assert n_errors <= 0.8 * n_tokens
