"""onnx-asr loads our folder unmodified; with a per-feature normalized model its text is ours.

onnx-asr always normalizes per feature, so equal text needs a model trained so: the small one in
tests/data/per_feature_an4, made by scripts/recipes/per_feature_an4 and kept as a float16 checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_asr
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.manifest import Utterance
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.recognizer import Recognizer

F32Array = npt.NDArray[np.float32]
MODEL_TYPE = "nemo-conformer-ctc"
MAX_BYTES = 1_500_000


def test_every_length_is_recognized(
    random_folder: Path, speech: F32Array, edge_samples: tuple[int, ...]
) -> None:
    model = onnx_asr.load_model(MODEL_TYPE, random_folder)
    for n_samples in edge_samples:
        assert isinstance(model.recognize(speech[:n_samples], sample_rate=16_000), str)
    batch = model.recognize([speech[:16_000], speech[:40_000]], sample_rate=16_000)
    assert len(batch) == 2


def test_the_kept_checkpoint_is_small(per_feature_checkpoint: Path) -> None:
    files = [p for p in per_feature_checkpoint.rglob("*") if p.is_file()]
    assert 0 < sum(p.stat().st_size for p in files) <= MAX_BYTES


def test_the_kept_model_is_per_feature_and_says_so(per_feature_bundle: Path) -> None:
    import onnx

    assert Bundle.load(per_feature_bundle).info.features.normalize == "per_feature"
    model = onnx.load(per_feature_bundle / "model.onnx")
    assert {p.key: p.value for p in model.metadata_props}["normalize_type"] == "per_feature"


@pytest.mark.slow
def test_text_equals_ours_on_real_clips(per_feature_bundle: Path, an4_dev: tuple[Utterance, ...]) -> None:
    theirs = onnx_asr.load_model(MODEL_TYPE, per_feature_bundle)
    with Recognizer.load(per_feature_bundle) as ours:
        our_texts = [ours.transcribe_file(u.audio_path).text for u in an4_dev]
    their_texts = [theirs.recognize(read_audio(u.audio_path), sample_rate=16_000) for u in an4_dev]
    assert their_texts == our_texts
    # Equal text would prove little if the model said nothing.
    wer = compute_error_rates([u.text for u in an4_dev], our_texts).wer
    assert wer < 0.4, f"the per-feature model has a WER of {wer:.3f} on AN4 dev"


def test_text_equals_ours_on_the_embedded_sample(per_feature_bundle: Path, speech: F32Array) -> None:
    theirs = onnx_asr.load_model(MODEL_TYPE, per_feature_bundle)
    with Recognizer.load(per_feature_bundle) as ours:
        text = ours.transcribe(speech, 16_000).text
    assert theirs.recognize(speech, sample_rate=16_000) == text
    assert text != ""
