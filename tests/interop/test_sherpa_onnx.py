"""sherpa-onnx loads our folder unmodified and recognizes with it as well as we do.

Its log-mel differs slightly from NeMo's (frame alignment), so recognition is judged by WER, on the
embedded model; random weights show that any length decodes to tokens of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import sherpa_onnx

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.manifest import Utterance
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.recognizer import Recognizer

F32Array = npt.NDArray[np.float32]


def load(folder: Path) -> sherpa_onnx.OfflineRecognizer:
    return sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt"), num_threads=1
    )


def recognize(recognizer: sherpa_onnx.OfflineRecognizer, waveform: F32Array) -> sherpa_onnx.OfflineStream:
    stream = recognizer.create_stream()
    stream.accept_waveform(16_000, waveform)
    recognizer.decode_stream(stream)
    return stream


def test_every_length_decodes_to_our_tokens(
    random_folder: Path, random_bundle: Path, speech: F32Array, edge_samples: tuple[int, ...]
) -> None:
    recognizer = load(random_folder)
    tokens = {t.replace("\u2581", " ") for t in Bundle.load(random_bundle).vocabulary.tokens}
    for n_samples in edge_samples:
        result = recognize(recognizer, speech[:n_samples]).result
        assert {t.replace("\u2581", " ") for t in result.tokens} <= tokens
        assert len(result.timestamps) == len(result.tokens)


def test_batches_decode(random_folder: Path, speech: F32Array) -> None:
    recognizer = load(random_folder)
    alone = recognize(recognizer, speech[:16_000]).result.text
    streams = [recognizer.create_stream() for _ in range(3)]
    for stream, n_samples in zip(streams, (16_000, 40_000, 8_000), strict=True):
        stream.accept_waveform(16_000, speech[:n_samples])
    recognizer.decode_streams(streams)
    assert streams[0].result.text == alone


def word_error_rates(folder: Path, utterances: tuple[Utterance, ...]) -> tuple[float, float]:
    """Ours and sherpa-onnx's, of the same folder on the same clips."""
    theirs = load(folder)
    references = [u.text for u in utterances]
    with Recognizer.load(folder) as ours:
        our_texts = [ours.transcribe_file(u.audio_path).text for u in utterances]
    their_texts = [recognize(theirs, read_audio(u.audio_path)).result.text.strip() for u in utterances]
    return compute_error_rates(references, our_texts).wer, compute_error_rates(references, their_texts).wer


@pytest.mark.slow
@pytest.mark.parametrize("dev_set", ["an4_dev", "librispeech_dev"])
def test_wer_of_tiny_en_is_at_most_one_point_above_ours(dev_set: str, request: pytest.FixtureRequest) -> None:
    utterances: tuple[Utterance, ...] = request.getfixturevalue(dev_set)
    bundle = Bundle.load("tiny-en")
    assert bundle.artifact("fp32").weights == "fp16"
    ours, theirs = word_error_rates(bundle.path, utterances)
    # Its features differ a little, so some words fall either way; only being worse would be our defect.
    assert theirs - ours <= 0.01, f"sherpa-onnx {theirs:.4f}, ours {ours:.4f}"


@pytest.mark.slow
def test_per_feature_normalization_is_announced(
    per_feature_bundle: Path, an4_dev: tuple[Utterance, ...]
) -> None:
    # Without normalize_type=per_feature in the metadata, sherpa-onnx's WER is near 100 %.
    ours, theirs = word_error_rates(per_feature_bundle, an4_dev)
    assert abs(theirs - ours) <= 0.02, f"sherpa-onnx {theirs:.4f}, ours {ours:.4f}"
