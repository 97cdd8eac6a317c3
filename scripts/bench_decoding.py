#!/usr/bin/env python3
"""What decoding costs: greedy search, beams, hotwords and a language model, as shares of greedy's total time.

The physics: greedy search is one argmax a frame; a beam runs some forty numpy calls a frame, 30 to 60 us
however many tokens there are, but none in frames of blank. So the cost depends on the speech: of letters
said slowly half is blank, of fluent speech hardly anything. The total is a call of `transcribe`: features,
encoder, decoder. All run on one thread in this process, taking turns, and a ratio is the median of those
within a round.

    python scripts/bench_decoding.py
    python scripts/bench_decoding.py --audio fluent.flac --seconds 10 --rounds 40

The exit code is 3 when a beam of 8 takes more than 1.5 times greedy's total, or one of 8 or 32 (the default)
more than 2.5 times with a language model: the bundle's own, or --lm FILE. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.benchmark.audio_clips import Recording
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.stages import RunTimes, StagedRecognizer
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.benchmark.timing import restart_with_threads, rounds, take_turns
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.diagnostics.machine import Machine
from edge_asr.runtime.decoding.choice import beam_decoder
from edge_asr.runtime.decoding.decoder import DecoderFactory
from edge_asr.vocabulary import Vocabulary

WARM_UP = 3
N_HOTWORDS = 300
#: What a row may take, in times of greedy's total.
GOALS = {"beam 8": 1.5, "beam 8, language model": 2.5, "beam 32, language model": 2.5}
PACKAGES = ("edge-asr", "numpy", "onnxruntime")


def main() -> int:
    """Measure, print a table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--audio", type=Path, help="speech; by default the embedded sample")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--lm", type=Path, help="language model; by default the bundle's own, if it has one")
    arguments = parser.parse_args()
    restart_with_threads(1)

    bundle = Bundle.load(arguments.bundle)
    recording = Recording.load(arguments.audio, bundle.info.features.sample_rate)
    clips = recording.clips(arguments.seconds, 1)
    words = random_words(bundle.vocabulary, N_HOTWORDS)
    decoders: dict[str, DecoderFactory | None] = {
        "greedy": None,
        **{f"beam {size}": beam_decoder(beam_size=size, lm=None) for size in (4, 8, 16)},
        f"beam 8, {N_HOTWORDS} hotwords": beam_decoder(beam_size=8, hotwords=words, lm=None),
    }
    lm = arguments.lm or bundle.language_model_path
    if lm is not None:
        decoders |= {
            f"beam {size}, language model": beam_decoder(beam_size=size, lm=lm) for size in (8, 16, 32)
        }
        decoders["beam 8, language model, hotwords"] = beam_decoder(beam_size=8, hotwords=words, lm=lm)
    with ExitStack() as stack:
        runs = {}
        for name, decoder in decoders.items():
            recognizer = stack.enter_context(
                StagedRecognizer.load(
                    bundle.path, precision=arguments.precision, num_threads=1, decoder=decoder
                )
            )
            runs[name] = partial(times_of, recognizer, clips, recording.sample_rate)
        samples = take_turns(runs, rounds(arguments.rounds), warm_up=WARM_UP)
        chosen = recognizer.backend.precision
    totals = {name: statistics.median(run.total_s for run in times) for name, times in samples.items()}
    decode = {name: statistics.median(run.decode_s for run in times) for name, times in samples.items()}
    ratios = {
        name: statistics.median(
            run.total_s / greedy.total_s for run, greedy in zip(times, samples["greedy"], strict=True)
        )
        for name, times in samples.items()
    }
    title = (
        f"{bundle.info.name} {chosen}, {arguments.seconds:g} s of {recording.describe().source}, one thread, "
        f"{arguments.rounds} rounds; goals: "
        + ", ".join(f"{name} in {goal} times greedy's total" for name, goal in GOALS.items())
    )
    rows = tuple(
        (name, f"{1e3 * totals[name]:.1f}", f"{1e3 * decode[name]:.1f}", f"{ratios[name]:.2f}")
        for name in totals
    )
    print_table(
        Table(title=title, columns=("median", "total ms", "decode ms", "of greedy"), rows=rows),
        make_console(),
    )
    result = {
        "bench": "decoding",
        "bundle": bundle.info.name,
        "precision": chosen,
        "seconds": arguments.seconds,
        "audio": recording.describe().source,
        "cpu": describe_cpu(Machine()),
        "versions": package_versions(PACKAGES),
        "total_ms": {name: round(1e3 * value, 2) for name, value in totals.items()},
        "decode_ms": {name: round(1e3 * value, 2) for name, value in decode.items()},
        "ratio": {name: round(value, 3) for name, value in ratios.items()},
        "goals": GOALS,
        "met": all(ratios[name] <= goal for name, goal in GOALS.items() if name in ratios),
    }
    print(json.dumps(result))
    return 0 if result["met"] else 3


def times_of(
    recognizer: StagedRecognizer, clips: list[npt.NDArray[np.float32]], sample_rate: int
) -> RunTimes:
    """Time one call of `transcribe`."""
    return recognizer.run(clips, sample_rate)[1]


def random_words(vocabulary: Vocabulary, n_words: int) -> list[str]:
    """Invent words that the vocabulary can spell: what they are does not change the time."""
    dice = random.Random(0)
    letters = [t for i, t in enumerate(vocabulary.tokens) if i != vocabulary.blank_id and t.isalpha()]
    return ["".join(dice.choices(letters, k=8)) for _ in range(n_words)]


if __name__ == "__main__":
    sys.exit(main())
