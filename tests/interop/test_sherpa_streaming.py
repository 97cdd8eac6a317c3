"""sherpa-onnx's online recognizer runs our streaming graphs, in a process of its own: it may end it.

Its log-mel is another than NeMo's, which the random weights of the golden fixture feel much more than trained
ones, and it drops the first outputs (docs/streaming.md), so its tokens are only bounded against ours, and
logged.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from golden_tokens import edit_distance, ids_of

from edge_asr.bundle import Bundle
from edge_asr.runtime.ctc import greedy_decode
from edge_asr.runtime.features import FeatureExtractor
from edge_asr.runtime.streaming_model import StreamingModel

RECOGNIZE = """
import json, sys
import numpy as np, sherpa_onnx, soundfile
folder, *clips = sys.argv[1:]
recognizer = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
    model=folder + "/stream.onnx", tokens=folder + "/tokens.txt", num_threads=1
)
streams = []
for clip in clips:
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, soundfile.read(clip, dtype="float32")[0])
    stream.accept_waveform(16000, np.zeros(16000, np.float32))
    stream.input_finished()
    streams.append(stream)
while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
    recognizer.decode_streams(ready)  # batches of streams, at different steps
print(json.dumps([recognizer.tokens(stream) for stream in streams]))
"""


def recognize(folder: Path, clips: list[Path]) -> list[list[str]]:
    """Tokens of each clip; the process must end well."""
    command = [sys.executable, "-c", RECOGNIZE, str(folder), *map(str, clips)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tokens: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return tokens


def test_nemo_model_in_the_online_recognizer(exported: Callable[[str], Path], shared_dir: Path) -> None:
    nemo = exported("nemo-fastconformer-streaming")
    clips = sorted((shared_dir / "golden" / "nemo-fastconformer-streaming").glob("audio_*.flac"))
    bundle = Bundle.load(nemo)
    model = StreamingModel.load(bundle, num_threads=1)
    extractor = FeatureExtractor(bundle.info.features)
    n_errors = n_tokens = 0
    for clip, tokens in zip(clips, recognize(nemo, clips), strict=True):
        state = model.start()
        parts = [model.push(state, extractor(soundfile.read(clip, dtype="float32")[0])), model.flush(state)]
        ours = greedy_decode(np.concatenate(parts), bundle.info.blank_id).ids.tolist()
        given = ids_of(tokens, bundle.vocabulary)
        assert len(given) > len(ours) // 2
        n_errors += edit_distance(given, ours)
        n_tokens += len(ours)
    logging.getLogger(__name__).info("sherpa-onnx, streaming: token error rate %.3f", n_errors / n_tokens)
    assert n_errors <= 0.8 * n_tokens


def test_our_own_model_in_the_online_recognizer(streaming_bundle: Path, sample_path: Path) -> None:
    """Random weights: it runs to the end of the clip and gives tokens of the vocabulary."""
    (tokens,) = recognize(streaming_bundle, [sample_path])
    vocabulary = Bundle.load(streaming_bundle).vocabulary
    assert all(0 <= token < len(vocabulary) - 1 for token in ids_of(tokens, vocabulary))
