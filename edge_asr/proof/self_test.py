"""Gives a bundle the clip and the references with which a machine can check itself.

`export` and `quantize` do so for every verified bundle; for an older one it is
`python -m edge_asr.proof.self_test FOLDER`.
What this file does not do: run the check (edge_asr.runtime.self_test).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import BundleInfo, SelfTest
from edge_asr.bundle.names import SELF_TEST_CLIP
from edge_asr.bundle.writer import write_manifest
from edge_asr.proof.clips import SAMPLES
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.self_test import STEPS_PER_NAT, stream_log_probs
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.vocabulary import Vocabulary

CLIP = SAMPLES / "robot_commands.flac"


def add_self_test(folder: Path) -> BundleInfo:
    """Add the sample of commands, with what onnxruntime hears in it on this CPU; return the record.

    Every precision is run as the runtime would run it, on one thread, and so is the streaming graph.

    Raises:
        BundleError, BackendError: the bundle cannot be run.
    """
    bundle = Bundle.load(folder, check_hashes=False)
    info = bundle.info
    waveform = read_audio(CLIP, info.features.sample_rate)
    clip = folder / SELF_TEST_CLIP
    soundfile.write(clip, waveform, info.features.sample_rate, format="FLAC", subtype="PCM_16")
    waveform = read_audio(clip, info.features.sample_rate)
    references: dict[str, Mapping[str, str]] = {}
    for artifact in info.artifacts:
        with Recognizer.load(
            folder, precision=artifact.precision, backend="cpu", num_threads=1
        ) as recognizer:
            log_probs = recognizer.log_probs(waveform, info.features.sample_rate)
            references[artifact.precision] = _reference(log_probs, bundle.vocabulary)
    stream: dict[str, Mapping[str, str]] = {}
    for artifact in () if info.streaming is None else info.streaming.artifacts:
        model = StreamingModel.load(bundle, precision=artifact.precision, num_threads=1)
        log_probs = stream_log_probs(model, waveform, info.features)
        stream[artifact.precision] = _reference(log_probs, bundle.vocabulary)
        model.close()
    self_test = SelfTest(clip=clip.name, sha256=sha256_of(clip), references=references, stream=stream or None)
    info = dataclasses.replace(info, self_test=self_test)
    write_manifest(folder, info)
    return info


def _reference(log_probs: npt.NDArray[np.float32], vocabulary: Vocabulary) -> Mapping[str, str]:
    argmax = np.argmax(log_probs, axis=1)
    values = np.rint(np.max(log_probs, axis=1) * STEPS_PER_NAT).astype(int)
    return {
        "text": vocabulary.decode(greedy_decode(log_probs, vocabulary.blank_id).ids.tolist()),
        "argmax": " ".join(map(str, argmax)),
        "values": " ".join(map(str, values)),
    }


if __name__ == "__main__":
    add_self_test(Path(sys.argv[1]))
