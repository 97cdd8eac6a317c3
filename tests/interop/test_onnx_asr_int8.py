"""onnx-asr loads our INT8 file with quantization="int8" and gives our INT8 text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_asr
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.calibration import Budget, Int8Options, quantize_bundle
from edge_asr.export import CasePlan
from edge_asr.manifest import Utterance
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer

MODEL_TYPE = "nemo-conformer-ctc"


@pytest.fixture(scope="session")
def per_feature_int8(per_feature_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The kept per-feature model, every group in INT8.

    Any loss is allowed: what is compared is one runtime with another on the same file, and a model of spelled
    letters says little on the embedded speech that ranges come from.
    """
    options = Int8Options(
        minutes=1, range_method="minmax", budget=Budget(max_wer_loss=10.0, min_agreement=0.0)
    )
    folder = tmp_path_factory.mktemp("interop") / "int8"
    plan = CasePlan(random_lengths=1, max_random_s=4.0, max_batch=2)
    bundle, result = quantize_bundle(per_feature_bundle, options, output=folder, plan=plan)
    assert result.calibration.is_synthetic
    assert result.sensitivity.chosen.int8 == tuple(result.sensitivity.alone)
    return bundle


def test_the_file_has_the_name_it_looks_for(per_feature_int8: Bundle) -> None:
    """onnx-asr: `model.onnx`, with the quantization before the suffix."""
    assert per_feature_int8.artifact("int8").file == "model.int8.onnx"
    assert per_feature_int8.artifact("int8").size_bytes < 0.5 * per_feature_int8.artifact("fp32").size_bytes


@pytest.mark.slow
def test_text_equals_our_int8_text_on_real_clips(
    per_feature_int8: Bundle, an4_dev: tuple[Utterance, ...]
) -> None:
    """From the same features on all clips; from its own on nearly all, and with the same WER.

    Its features differ from ours by up to 1e-4. Where a value lies between two steps of INT8, that is a
    difference of a whole step, and a token that was hardly more likely than the next changes (88 of 92 texts
    are equal). In float32 all are (test_onnx_asr.py).
    """
    theirs = onnx_asr.load_model(MODEL_TYPE, per_feature_int8.path, quantization="int8")
    extract = FeatureExtractor(per_feature_int8.info.features)
    backend = OnnxRuntimeBackend(per_feature_int8.artifact_path("int8"), precision="int8")
    vocabulary = per_feature_int8.vocabulary
    their_texts, same_features = [], []
    for utterance in an4_dev:
        waveform = read_audio(utterance.audio_path)
        batch, lengths = theirs.asr._preprocessor(waveform[None], np.asarray([len(waveform)], np.int64))
        features = np.ascontiguousarray(batch.transpose(0, 2, 1))
        assert np.abs(features[0, : int(lengths[0])] - extract(waveform)).max() < 1e-3
        n_frames = -(-int(lengths[0]) // per_feature_int8.info.subsampling_factor)
        log_probs = backend.log_probs(features, lengths.astype(np.int64))[0, :n_frames]
        same_features.append(vocabulary.decode(greedy_decode(log_probs, vocabulary.blank_id).ids.tolist()))
        their_texts.append(theirs.recognize(waveform, sample_rate=16_000))
    backend.close()
    with Recognizer.load(per_feature_int8.path, precision="int8", backend="cpu") as ours:
        our_texts = [ours.transcribe_file(u.audio_path).text for u in an4_dev]
    for texts, least in ((same_features, 1.0), (our_texts, 0.9)):
        n_equal = sum(a == b for a, b in zip(texts, their_texts, strict=True))
        assert n_equal >= least * len(an4_dev), f"{n_equal} of {len(an4_dev)} texts are equal"
    references = [u.text for u in an4_dev]
    wers = [compute_error_rates(references, texts).wer for texts in (our_texts, their_texts)]
    # Equal text would prove little if the model said nothing.
    assert max(wers) < 0.4, wers
    assert abs(wers[0] - wers[1]) < 0.01, wers
