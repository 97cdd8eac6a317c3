#!/usr/bin/env python3
"""How stable partials are: of the words shown in one partial, how many are others in the next.

Every utterance of the manifests is followed as `listen` does it, block by block of 20 ms, but without waiting
for the sound. A word counts as changed if it was replaced or taken back, by the smallest
number of edits between one text and the next; words that come are no change. Steps are not timed.

    python scripts/bench_partials.py bundle/ dev.jsonl more.jsonl --precision int8 --limit 100

The exit code is 3 when more than 5 % of the words change; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from edge_asr.audio import STREAM_SAMPLE_RATE, read_audio
from edge_asr.bundle.folder import DEFAULT_MODEL
from edge_asr.manifest import read_manifest
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialDecoder, WindowedDecoder
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.live.streaming_decoder import streaming_decoders
from edge_asr.runtime.recognizer import Recognizer

MAX_CHANGED = 0.05


def main() -> int:
    """Measure, print a line for each manifest and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--limit", type=int, help="only so many utterances of each manifest")
    parser.add_argument("--partials", choices=("auto", "streaming", "windowed"), default="auto")
    arguments = parser.parse_args()
    found = {}
    with Recognizer.load(arguments.bundle, precision=arguments.precision, num_threads=1) as recognizer:
        make = streaming_decoders(recognizer, arguments.partials)
        decoder: PartialDecoder = WindowedDecoder(recognizer) if make is None else make()
        mode = "windowed" if make is None else f"streaming {recognizer.streaming_model().precision}"
        for manifest in arguments.manifests:
            result = measure(decoder, manifest, arguments.limit)
            found[manifest.stem] = result
            print(
                f"{manifest.stem}, {mode}: {result['changed']:.2%} of {result['n_shown']} words changed, "
                f"WER of the last partials {result['wer']:.2%}, {result['n_utterances']} utterances"
            )
    print(json.dumps({"mode": mode, "manifests": found}))
    return 3 if any(result["changed"] > MAX_CHANGED for result in found.values()) else 0


def measure(decoder: PartialDecoder, manifest: Path, limit: int | None) -> dict[str, float]:
    """Follow the utterances of one manifest."""
    step, interval = (round(s * STREAM_SAMPLE_RATE) for s in (0.02, LiveConfig().partial_interval_s))
    n_shown = n_changed = 0
    texts, lasts = [], []
    for utterance in read_manifest(manifest).utterances[:limit]:
        samples = read_audio(utterance.audio_path, STREAM_SAMPLE_RATE)
        history, partials = AudioHistory(), list[str]()
        decoder.begin(0)
        for start in range(0, len(samples), step):
            history.append(samples[start : start + step])
            if (hypothesis := decoder.follow(history, interval)) is not None:
                partials.append(hypothesis.settled_text)
        shown, changed = count_changed(partials)
        n_shown, n_changed = n_shown + shown, n_changed + changed
        if utterance.text:
            texts.append(utterance.text)
            lasts.append(next(filter(None, reversed(partials)), ""))
    return {
        "changed": n_changed / max(n_shown, 1),
        "n_shown": n_shown,
        "wer": compute_error_rates(texts, lasts).wer,
        "n_utterances": len(texts),
    }


def count_changed(partials: Iterable[str]) -> tuple[int, int]:
    """Count the words shown before another partial came, and those of them that it changed."""
    n_shown = n_changed = 0
    for before, after in itertools.pairwise(filter(None, partials)):
        rates = compute_error_rates([before], [after], normalization="none")
        n_shown += rates.n_words
        n_changed += rates.substitutions + rates.deletions
    return n_shown, n_changed


if __name__ == "__main__":
    sys.exit(main())
