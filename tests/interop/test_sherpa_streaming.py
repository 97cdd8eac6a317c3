"""sherpa-onnx's online recognizer runs our streaming graphs, in a process of its own: it may end it.

Its log-mel is another than NeMo's and it has no first step of its own (docs/streaming.md). With its features,
from the library that it computes them with, and its windows, our runtime gives exactly its tokens; against
our own features they are only bounded, for random weights feel the difference much more than trained ones.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from golden_tokens import edit_distance, ids_of

from edge_asr.bundle.folder import Bundle
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.streaming_model import StreamingModel

F32Array = npt.NDArray[np.float32]

RECOGNIZE = """
import json, sys
import numpy as np, sherpa_onnx, soundfile
folder, model, *clips = sys.argv[1:]
recognizer = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
    model=folder + "/" + model, tokens=folder + "/tokens.txt", num_threads=1
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


def recognize(folder: Path, clips: list[Path], model: str = "stream.onnx") -> list[list[str]]:
    """Tokens of each clip; the process must end well."""
    command = [sys.executable, "-c", RECOGNIZE, str(folder), model, *map(str, clips)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tokens: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return tokens


def sherpa_features(waveform: F32Array) -> F32Array:
    """As sherpa-onnx computes them for NeMo models, with a second of silence behind the clip."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.frame_opts.remove_dc_offset = False
    options.frame_opts.window_type = "hann"
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 0
    options.mel_opts.is_librosa = True
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16000, [*waveform.tolist(), *([0.0] * 16000)])
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def sherpa_tokens(model: StreamingModel, waveform: F32Array, blank_id: int) -> list[int]:
    """Full windows from frame 0 on while one more frame is there (online-recognizer-ctc-impl.h)."""
    geometry, features = model.geometry, sherpa_features(waveform)
    caches, outputs, done = model.initial_caches(), [], 0
    while done + geometry.window_frames < len(features):
        window = features[None, done : done + geometry.window_frames]
        log_probs, _, caches = model.run_step(window, np.array([geometry.window_frames]), caches)
        outputs.append(log_probs[0])
        done += geometry.shift_frames
    ids: list[int] = greedy_decode(np.concatenate(outputs), blank_id).ids.tolist()
    return ids


def test_nemo_model_in_the_online_recognizer(golden_bundle: Callable[[str], Path], golden_dir: Path) -> None:
    folder = golden_bundle("nemo-fastconformer-streaming")
    clips = sorted(golden_dir.glob("audio_*.flac"))
    bundle = Bundle.load(folder)
    model = StreamingModel.load(bundle, num_threads=1)
    extractor = FeatureExtractor(bundle.info.features)
    n_errors = n_tokens = 0
    for clip, tokens in zip(clips, recognize(folder, clips), strict=True):
        waveform = soundfile.read(clip, dtype="float32")[0]
        given = ids_of(tokens, bundle.vocabulary)
        assert given == sherpa_tokens(model, waveform, bundle.info.blank_id)
        state = model.start()
        log_probs = np.concatenate([model.push(state, extractor(waveform)), model.flush(state)])
        ours = greedy_decode(log_probs, bundle.info.blank_id).ids.tolist()
        n_errors += edit_distance(given, ours)
        n_tokens += len(ours)
    logging.getLogger(__name__).info("sherpa-onnx, streaming: token error rate %.3f", n_errors / n_tokens)
    assert n_errors <= 0.8 * n_tokens


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_our_own_model_in_the_online_recognizer(
    streaming_int8_bundle: Path, sample_path: Path, precision: str
) -> None:
    """Caches of keys and values are as opaque to it as NeMo's; random weights, so the text means nothing."""
    bundle = Bundle.load(streaming_int8_bundle)
    assert bundle.streaming.geometry.layout == "kv"
    file = bundle.streaming.find(precision).file
    (tokens,) = recognize(streaming_int8_bundle, [sample_path], file)
    model = StreamingModel.load(bundle, precision=precision, num_threads=1)
    waveform = soundfile.read(sample_path, dtype="float32")[0]
    assert ids_of(tokens, bundle.vocabulary) == sherpa_tokens(model, waveform, bundle.info.blank_id)
