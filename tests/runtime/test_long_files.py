"""`tiny-en` on recordings far longer than a window: no worse than on pieces of them that fit in one.

The pieces are clips joined too: that the voice changes without a pause costs the model words by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from edge_asr.audio import read_audio
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.recognizer import Recognizer

F32Array = npt.NDArray[np.float32]
MAX_WER_CHANGE = 0.02
PIECE_S = 25


def join(clips: list[F32Array]) -> list[F32Array]:
    """Join neighbors to pieces of at most `PIECE_S`."""
    pieces: list[list[F32Array]] = [[]]
    for clip in clips:
        if sum(map(len, pieces[-1])) + len(clip) > PIECE_S * 16000:
            pieces.append([])
        pieces[-1].append(clip)
    return [np.concatenate(piece) for piece in pieces]


@pytest.mark.slow
@pytest.mark.parametrize("dev_set", ["an4_dev", "librispeech_dev"])
def test_clips_end_to_end_have_the_wer_of_pieces_of_a_window(
    dev_set: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """At offsets of 0 to 3 s, so that window edges fall elsewhere each time."""
    utterances: Any = request.getfixturevalue(dev_set)
    references = [utterance.text for utterance in utterances]
    clips = [read_audio(utterance.audio_path) for utterance in utterances]
    with Recognizer.load("tiny-en", num_threads=1) as recognizer:
        texts = [recognizer.transcribe(piece, 16000).text for piece in join(clips)]
        piece_wer = compute_error_rates([" ".join(references)], [" ".join(texts)]).wer
        changes = []
        for offset_s in (0.0, 1.1, 2.3, 3.0):
            path = tmp_path / "joined.wav"
            joined = np.concatenate([np.zeros(round(offset_s * 16000), np.float32), *clips])
            soundfile.write(path, joined, 16000, subtype="FLOAT")
            text = recognizer.transcribe_file(path).text
            changes.append(compute_error_rates([" ".join(references)], [text]).wer - piece_wer)
    # The mean: where the frames fall moves the WER by 1 or 2 points either way, as it does for single clips.
    # Better is welcome: in a long window the model hears more of each voice than in a clip.
    assert np.mean(changes) <= MAX_WER_CHANGE, f"WER {piece_wer:.4f} in pieces, changes {changes}"
