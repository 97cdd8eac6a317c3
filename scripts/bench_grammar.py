#!/usr/bin/env python3
"""Grammars measured: compilation, time of decoding, and what is recognized, rejected and taken wrongly.

Speed: a grammar of N random phrases of two to five words (plain text, seeded) is compiled for the model, and
3 s that are none of them are transcribed with greedy search and with the grammar, in turns: rejection is what
takes longest. Times are of the processor, for the machine may be shared. The physics: the encoder takes
nearly all of greedy's time, so what the search adds is the difference. Goals: 10 000 phrases compile in less
than 10 s, and the total with the grammar is at most twice greedy's.

Accuracy, with --clips and --data: grammars of 40, 200 and 1000 robot commands said by a synthesizer
(scripts/grammars/clips.py makes the folder), clean and in noise, and AN4 dev with its own texts; other speech
and noise must be rejected. With --heard, what Whisper and PocketSphinx heard (scripts/grammars/hear.py)
stands beside, on the same clips. The tables are Markdown; -o writes them below the text that a page has
already.

    python scripts/bench_grammar.py
    python scripts/bench_grammar.py --clips CLIPS --data DATA --heard HEARD -o
    docs/results/grammar-2026-11-29.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from grammars.accuracy import MAX_FALSE_ACCEPTS, measure_accuracy, to_markdown

from edge_asr.audio import AudioFile
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.runtime.decoding.decoder import Decoder
from edge_asr.runtime.decoding.grammar.graph import TokenGraph, compile_graph
from edge_asr.runtime.decoding.grammar.recognition import GrammarDecoder
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary

SAMPLE = Path(__file__).resolve().parents[1] / "edge_asr" / "models" / "samples" / "robot_commands.flac"
MAX_COMPILE_S = 10.0
MAX_RATIO = 2.0
CLIP_S = 3.0
MIN_RIGHT, MAX_REJECTED = 0.97, 0.05
TABLES = "## Tables"
_SYLLABLES = [consonant + vowel for consonant in "bklmnrst" for vowel in "aeio"]


def main() -> int:
    """Measure, print tables and the JSON line; the exit code is 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-m", "--model", default="tiny-en")
    parser.add_argument("--phrases", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clips", type=Path, help="folder of scripts/grammars/clips.py")
    parser.add_argument("--data", type=Path, help="folder of an4_dev, the other speech and noise (.jsonl)")
    parser.add_argument("--heard", type=Path, help="folder of what peers heard")
    parser.add_argument("-o", "--output", type=Path, help="page whose tables are written anew")
    arguments = parser.parse_args()
    if arguments.clips is None:
        speed = measure_speed(arguments.model, arguments.phrases, arguments.repeats)
        print(json.dumps({"speed": speed}))
        return int(not speed["goals_met"])
    if arguments.data is None:
        parser.error("--clips needs --data")
    rows = measure_accuracy(arguments.model, arguments.clips, arguments.data, arguments.heard)
    tables = to_markdown(rows)
    print(tables)
    if arguments.output is not None:
        page = arguments.output.read_text("utf-8") if arguments.output.exists() else ""
        kept = page.partition(TABLES)[0]
        arguments.output.write_text(f"{kept}{TABLES}\n\n{tables}", encoding="utf-8")
    named = [
        {"grammar": r.grammar, "sound": r.clips, "program": r.contender, **r.counts.to_dict()} for r in rows
    ]
    print(json.dumps({"model": arguments.model, "rows": named}))
    goal, speech = rows[0].counts, next(r.counts for r in rows if r.clips == "other speech")
    is_met = goal.n_right >= MIN_RIGHT * goal.n_commands and goal.n_rejected <= MAX_REJECTED * goal.n_commands
    return int(not is_met or speech.false_accepts_an_hour > MAX_FALSE_ACCEPTS)


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


if __name__ == "__main__":
    sys.exit(main())
