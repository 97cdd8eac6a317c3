#!/usr/bin/env python3
"""Grammars measured: compilation, time of decoding, and what is recognized, rejected and taken wrongly.

Speed: a grammar of N random phrases of two to five words (plain text, seeded) is compiled for the model, and
3 s that are none of them are transcribed with greedy search and with the grammar, in turns: rejection is what
takes longest. Times are of the processor, for the machine may be shared. The physics: the encoder takes
nearly all of greedy's time, so what the search adds is the difference. Goals: 10 000 phrases compile in less
than 10 s, and the total with the grammar is at most twice greedy's.

Accuracy, with --commands and --speech (JSON Lines manifests): every clip of a command whose text the
grammar has must give that phrase; a clip of other speech must give none. The model runs once a clip, and each
row of the table is one threshold: commands right, wrong and rejected; false accepts of other speech, and per
hour.

    python scripts/bench_grammar.py
    python scripts/bench_grammar.py --grammar robot.txt --commands commands.jsonl --speech other.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from edge_asr.audio import AudioFile
from edge_asr.benchmark.grammar import LogProbsRecorder, count_by_threshold, find_phrases, hear_clips
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.manifest import read_manifest
from edge_asr.runtime.decoding.decoder import Decoder
from edge_asr.runtime.decoding.grammar.graph import TokenGraph, compile_graph
from edge_asr.runtime.decoding.grammar.read import load_graph
from edge_asr.runtime.decoding.grammar.recognition import MODES, GrammarDecoder, Mode
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary

SAMPLE = Path(__file__).resolve().parents[1] / "edge_asr" / "models" / "samples" / "robot_commands.flac"
MAX_COMPILE_S = 10.0
MAX_RATIO = 2.0
CLIP_S = 3.0
_SYLLABLES = [consonant + vowel for consonant in "bklmnrst" for vowel in "aeio"]


def main() -> int:
    """Measure, print tables and the JSON line; the exit code is 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-m", "--model", default="tiny-en")
    parser.add_argument("--phrases", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--grammar", type=Path)
    parser.add_argument("--commands", type=Path)
    parser.add_argument("--speech", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="at most so many of each manifest")
    parser.add_argument("--mode", choices=MODES, default="whole")
    arguments = parser.parse_args()
    result: dict[str, object] = {}
    if arguments.grammar is None:
        result["speed"] = measure_speed(arguments.model, arguments.phrases, arguments.repeats)
    else:
        result["accuracy"] = measure_accuracy(
            arguments.model,
            arguments.grammar,
            arguments.commands,
            arguments.speech,
            arguments.clips,
            arguments.mode,
        )
    print(json.dumps(result))
    speed = result.get("speed")
    return int(isinstance(speed, dict) and not speed["goals_met"])


def random_grammar(n_phrases: int) -> str:
    """Return distinct phrases of two to five words out of 2000, one a line."""
    rng = np.random.default_rng(1)
    words = sorted({"".join(rng.choice(_SYLLABLES, rng.integers(1, 4))) for _ in range(4000)})[:2000]
    phrases: dict[str, None] = {}
    while len(phrases) < n_phrases:
        phrases[" ".join(rng.choice(words, rng.integers(2, 6)))] = None
    return "\n".join(phrases)


def measure_speed(model: str, n_phrases: int, n_repeats: int) -> dict[str, object]:
    """Compile, then transcribe a clip with both decoders in turns."""
    text = random_grammar(n_phrases)
    compiled: list[tuple[float, TokenGraph]] = []

    def make(vocabulary: Vocabulary) -> GrammarDecoder:
        began = time.process_time()
        graph = compile_graph(parse_template(text), vocabulary)
        compiled.append((time.process_time() - began, graph))
        return GrammarDecoder(graph)

    with Recognizer.load(model, num_threads=1, backend="cpu") as recognizer:
        with AudioFile(SAMPLE) as file:
            sound, rate = np.concatenate(list(file.blocks())), file.sample_rate
        waveform = np.resize(sound, round(CLIP_S * rate))
        decoders: dict[str, Decoder] = {
            "greedy": GreedyDecoder.for_vocabulary(recognizer.vocabulary),
            "grammar": make(recognizer.vocabulary),
        }
        laps: dict[str, list[float]] = {name: [] for name in decoders}
        for repeat in range(n_repeats + 1):
            for name, decoder in decoders.items():
                recognizer._decoder = decoder
                began = time.process_time()
                recognizer.transcribe(waveform, rate)
                if repeat:  # the first one warms up
                    laps[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in laps.items()}
    fastest = {name: min(values) for name, values in laps.items()}
    ratio = medians["grammar"] / medians["greedy"]
    compile_s, graph = compiled[0]
    rows = [("compilation", f"{compile_s:.2f} s"), ("graph", f"{len(graph)} nodes, {graph.n_arcs} arcs")]
    for name in laps:
        rows.append((f"{name}, total", f"{medians[name] * 1e3:.1f} ms (fastest {fastest[name] * 1e3:.1f})"))
    rows.append(("grammar / greedy", f"{ratio:.2f}"))
    title = f"{n_phrases} phrases, {CLIP_S:g} s, one thread"
    print_table(Table(title=title, columns=("", "value"), rows=tuple(rows)), make_console())
    return {
        "n_phrases": n_phrases,
        "compile_s": round(compile_s, 3),
        "n_nodes": len(graph),
        "n_arcs": graph.n_arcs,
        **{f"{name}_ms": round(medians[name] * 1e3, 2) for name in laps},
        **{f"{name}_fastest_ms": round(fastest[name] * 1e3, 2) for name in laps},
        "ratio": round(ratio, 3),
        "goals_met": compile_s <= MAX_COMPILE_S and ratio <= MAX_RATIO,
    }


def measure_accuracy(
    model: str, grammar: Path, commands: Path | None, speech: Path | None, n_clips: int, mode: Mode
) -> list[dict[str, float | int]]:
    """Recognize both manifests, and count by threshold."""
    recorders: list[LogProbsRecorder] = []

    def record(vocabulary: Vocabulary) -> LogProbsRecorder:
        recorders.append(LogProbsRecorder(vocabulary))
        return recorders[-1]

    with Recognizer.load(model, num_threads=1, backend="cpu", decoder=record) as recognizer:
        graph = load_graph(grammar, recognizer.vocabulary)
        said = [] if commands is None else list(read_manifest(commands).utterances)
        known = hear_clips(recognizer, recorders[0], [u for u in said if graph.has_phrase(u.text)][:n_clips])
        rest = [] if speech is None else list(read_manifest(speech).utterances)
        other = hear_clips(
            recognizer, recorders[0], [u for u in rest if not graph.has_phrase(u.text)][:n_clips]
        )
    counts = count_by_threshold(find_phrases(graph, known, mode=mode), find_phrases(graph, other, mode=mode))
    minutes = counts[0].other_s / 60
    n_greedy = sum(clip.heard == clip.text for clip in known)
    table = Table(
        title=f"{len(known)} commands (greedy: {n_greedy} right), {len(other)} others, {minutes:.1f} min",
        columns=("threshold", "right", "wrong", "rejected", "false accepts", "an hour"),
        rows=tuple(
            (
                f"{c.threshold or 0.0:g}",
                *(str(n) for n in (c.n_right, c.n_wrong, c.n_rejected, c.n_false_accepts)),
                f"{c.false_accepts_an_hour:.1f}",
            )
            for c in counts
        ),
    )
    print_table(table, make_console())
    return [count.to_dict() for count in counts]


if __name__ == "__main__":
    sys.exit(main())
