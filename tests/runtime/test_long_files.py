"""`tiny-en` on recordings far longer than a window: no worse than on the clips they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge_asr.audio import read_audio
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.recognizer import Recognizer

MAX_WER_CHANGE = 0.005


@pytest.mark.slow
@pytest.mark.parametrize("dev_set", ["an4_dev", "librispeech_dev"])
def test_clips_end_to_end_have_the_wer_of_the_clips(
    dev_set: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """At offsets of 0 to 3 s, so that window edges fall elsewhere each time."""
    utterances: Any = request.getfixturevalue(dev_set)
    references = [utterance.text for utterance in utterances]
    clips = [read_audio(utterance.audio_path) for utterance in utterances]
    with Recognizer.load("tiny-en", num_threads=1) as recognizer:
        alone = recognizer.transcribe_batch([(clip, 16000) for clip in clips])
        clip_wer = compute_error_rates(references, [transcript.text for transcript in alone]).wer
        changes = []
        for offset_s in (0.0, 1.1, 2.3, 3.0):
            path = tmp_path / "joined.wav"
            joined = np.concatenate([np.zeros(round(offset_s * 16000), np.float32), *clips])
            soundfile.write(path, joined, 16000, subtype="FLOAT")
            text = recognizer.transcribe_file(path).text
            changes.append(compute_error_rates([" ".join(references)], [text]).wer - clip_wer)
    # The mean: where the frames fall moves the WER by a point either way, as it does for the clips alone.
    # Better is welcome: in a long window the model hears more of each voice than in a clip.
    assert np.mean(changes) <= MAX_WER_CHANGE, f"WER {clip_wer:.4f} alone, changes {changes}"
