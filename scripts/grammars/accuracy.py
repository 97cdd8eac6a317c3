"""Part of scripts/bench_grammar.py: what grammars get right, reject and take wrongly, beside other programs.

The model runs once a clip; its log-probs serve all grammars. A peer's texts come from hear.py. Whisper's is
matched to the phrase with the fewest letters to change, and accepted below a share of its letters;
PocketSphinx has the grammar itself, and its score decides. Every contender gets its threshold for each
grammar in the same way: most commands right at no more than one false accept an hour, chosen on the clean
commands and other speech of the table.
What this file does not do: let peers hear (hear.py), make clips (clips.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_asr.benchmark.grammar import (
    THRESHOLDS,
    Clip,
    Found,
    GrammarCounts,
    LogProbsRecorder,
    choose_threshold,
    count_by_threshold,
    cut_pieces,
    find_phrases,
    hear_clips,
    hold_out,
)
from edge_asr.manifest import read_manifest
from edge_asr.runtime.decoding.grammar.check import edit_distances
from edge_asr.runtime.decoding.grammar.graph import TokenGraph
from edge_asr.runtime.decoding.grammar.number_words import number_words
from edge_asr.runtime.decoding.grammar.read import grammar_decoder, load_graph
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary

MAX_FALSE_ACCEPTS = 1.0
GRAMMARS = ("robot40", "robot200", "robot1000", "an4_dev")
NOISY = ("robot40_20db", "robot40_10db", "robot40_5db")
OTHER = ("librispeech_dev", "librispeech5_dev::6", "commonvoice_dev")
#: Large grammars see every fourth of the other clips.
STEP = 4
#: Sets of which peers have heard fewer clips have no rows of peers.
MIN_CLIPS = 20
SHARES = tuple(np.round(np.arange(0.0, 0.62, 0.04), 2).tolist())


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tables."""

    grammar: str
    clips: str
    contender: str
    counts: GrammarCounts


@dataclass(frozen=True, slots=True)
class Sound:
    """A clip and its file."""

    path: Path
    clip: Clip


def measure_accuracy(model: str, folder: Path, data: Path, heard: Path | None) -> list[Row]:
    """Recognize everything once, and count.

    Args:
        model: a bundle.
        folder: what clips.py made.
        data: folder of an4_dev.jsonl, the manifests of `OTHER`, and noise.jsonl.
        heard: folder of what hear.py made: whisper.jsonl and pocketsphinx_GRAMMAR.jsonl; None without peers.
    """
    recorders: list[LogProbsRecorder] = []

    def record(vocabulary: Vocabulary) -> LogProbsRecorder:
        recorders.append(LogProbsRecorder(vocabulary))
        return recorders[-1]

    def hear(manifest: Path, step: int = 1) -> list[Sound]:
        rows = list(read_manifest(manifest).utterances)[::step]
        clips = hear_clips(recognizer, recorders[0], rows)
        return [Sound(row.audio_path.resolve(), clip) for row, clip in zip(rows, clips, strict=True)]

    with Recognizer.load(model, num_threads=1, backend="cpu", decoder=record) as recognizer:
        vocabulary, bundle = recognizer.vocabulary, recognizer.bundle
        assert bundle is not None
        commands = {
            name: hear((folder if "robot" in name else data) / f"{name}.jsonl")
            for name in (*GRAMMARS, *NOISY)
        }
        speech: list[Sound] = []
        for name in OTHER:
            stem, _, every = name.partition("::")
            speech += hear(data / f"{stem}.jsonl", int(every or 1))
        noise = hear(data / "noise.jsonl")
    texts = folder / "an4_dev.txt"
    texts.write_text("".join(f"{t}\n" for t in dict.fromkeys(s.clip.text for s in commands["an4_dev"])))
    rows: list[Row] = []
    for grammar in GRAMMARS:
        file = folder / f"{grammar}.txt"
        graph = load_graph(file, vocabulary)
        step = 1 if grammar == GRAMMARS[0] else STEP
        sets = {name: commands[name] for name in (grammar, *(NOISY if grammar == GRAMMARS[0] else ()))}
        foreign = {"other speech": speech[::step], "noise": noise[::step]}
        if grammar == GRAMMARS[0]:
            foreign["other commands"] = [*commands["robot200"], *commands["robot1000"]]
        threshold = grammar_decoder(file).for_bundle(bundle)(vocabulary).threshold
        for name, sounds in (sets | foreign).items():
            found = find_phrases(graph, [s.clip for s in sounds], thresholds=[threshold])
            is_command = name in sets
            counts = count_by_threshold(
                found if is_command else [], [] if is_command else found, [threshold]
            )[0]
            rows.append(Row(grammar, name, "edge-asr, shipped threshold", counts))
        pieces = cut_pieces([s.clip for s in foreign["other speech"]], vocabulary)
        found = find_phrases(graph, pieces, thresholds=[threshold])
        rows.append(
            Row(
                grammar,
                "pieces of it",
                "edge-asr, shipped threshold",
                count_by_threshold([], found, [threshold])[0],
            )
        )
        if grammar == GRAMMARS[0]:
            rows += _held_out(graph, grammar, sets[grammar], foreign["other speech"])
        if heard is not None:
            rows += _beside_peers(graph_phrases(file), grammar, graph, sets, foreign, heard)
    return rows


def _held_out(graph: TokenGraph, grammar: str, commands: list[Sound], speech: list[Sound]) -> list[Row]:
    """Choose a threshold on other speech alone, and judge it on speakers that did not choose it."""
    found = [find_phrases(graph, [s.clip for s in sounds]) for sounds in (commands, speech)]
    best = choose_threshold(count_by_threshold(found[0], found[1]), MAX_FALSE_ACCEPTS)
    judged = hold_out(found[0], found[1], MAX_FALSE_ACCEPTS)
    rows = []
    for name, counts in (("edge-asr, tuned", best), ("edge-asr, tuned, held out", judged)):
        if counts is not None:
            rows.append(Row(grammar, grammar, name, counts))
            rows.append(Row(grammar, "other speech", name, replace(counts, n_commands=0)))
    return rows


def graph_phrases(file: Path) -> list[str]:
    """Return the phrases of a grammar of one a line."""
    return [line for line in file.read_text().splitlines() if line]


def _beside_peers(
    phrases: Sequence[str],
    grammar: str,
    graph: TokenGraph,
    sets: dict[str, list[Sound]],
    foreign: dict[str, list[Sound]],
    heard: Path,
) -> list[Row]:
    """Count all contenders on the clips that the peers have heard."""
    whisper = _read(heard / "whisper.jsonl")
    sphinx = _read(heard / f"pocketsphinx_{grammar}.jsonl")
    both = whisper.keys() & sphinx.keys()
    parts = {name: [s for s in sounds if str(s.path) in both] for name, sounds in (sets | foreign).items()}
    parts = {name: sounds for name, sounds in parts.items() if len(sounds) >= MIN_CLIPS}
    if grammar not in parts or "other speech" not in parts:
        return []
    scores = sorted(score for _, score in sphinx.values())
    grid = tuple(scores[:: max(1, len(scores) // 40)])
    rows: list[Row] = []
    for contender in ("edge-asr", "Whisper tiny.en", "PocketSphinx"):
        found: dict[str, list[Found]] = {}
        thresholds: Sequence[float] = SHARES
        for name, sounds in parts.items():
            clips = [s.clip for s in sounds]
            if contender == "edge-asr":
                thresholds = THRESHOLDS
                found[name] = find_phrases(graph, clips)
            elif contender == "Whisper tiny.en":
                texts = [whisper[str(s.path)][0] for s in sounds]
                found[name] = [Found(c, _nearest(t, phrases)) for c, t in zip(clips, texts, strict=True)]
            else:
                thresholds = grid
                pairs = [sphinx[str(s.path)] for s in sounds]
                found[name] = [
                    Found(clip, tuple(text or None if score >= least else None for least in grid))
                    for clip, (text, score) in zip(clips, pairs, strict=True)
                ]
        counts = count_by_threshold(found.get(grammar, []), found.get("other speech", []), thresholds)
        best = choose_threshold(counts, MAX_FALSE_ACCEPTS) or min(counts, key=lambda c: c.n_false_accepts)
        places = {contender: [*thresholds].index(best.threshold or 0.0)}
        if contender == "PocketSphinx":
            places["PocketSphinx, no threshold"] = 0
        for name, part in found.items():
            is_command = name in sets
            counted = count_by_threshold(part if is_command else [], [] if is_command else part, thresholds)
            rows += [Row(grammar, name, label, counted[place]) for label, place in places.items()]
    return rows


def _read(path: Path) -> dict[str, tuple[str, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["path"]: (row["text"], row["score"]) for row in rows}


def _nearest(text: str, phrases: Sequence[str]) -> tuple[str | None, ...]:
    """Return the phrase nearest to what Whisper wrote, at each share of its letters that may differ."""
    letters = [[ord(c) for c in phrase.replace(" ", "")] for phrase in phrases]
    best, phrase = 9.0, None
    for spelled in {_spell(text, as_digits=True), _spell(text, as_digits=False)}:
        if not spelled:
            continue
        shares = edit_distances([ord(c) for c in spelled], letters) / [len(row) for row in letters]
        if shares.min() < best:
            best, phrase = float(shares.min()), phrases[int(shares.argmin())]
    return tuple(phrase if best <= share + 1e-9 else None for share in SHARES)


def _spell(text: str, *, as_digits: bool) -> str:
    """Write numbers in words and leave out everything but letters."""

    def words(found: re.Match[str]) -> str:
        number = found[0]
        if as_digits or len(number) > 6:
            return " ".join(number_words(int(digit)) for digit in number)
        return number_words(int(number))

    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower()).replace("\N{DEGREE SIGN}", " degrees ")
    return re.sub(r"[^a-z]", "", re.sub(r"\d+", words, text))


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the tables."""
    lines = []
    for kind in ("commands", "others"):
        is_command = kind == "commands"
        head = (
            "clips | right | wrong | rejected" if is_command else "clips, minutes | false accepts | an hour"
        )
        columns = head.count("|") + 4
        lines += ["", f"| grammar | sound | program | {head} |", "|" + "---|" * columns]
        for row in rows:
            c = row.counts
            if bool(c.n_commands) != is_command:
                continue
            if is_command:
                share = [f"{100 * n / c.n_commands:.1f} %" for n in (c.n_right, c.n_wrong, c.n_rejected)]
                facts = [str(c.n_commands), *share]
            else:
                facts = [
                    f"{c.n_other}, {c.other_s / 60:.1f}",
                    str(c.n_false_accepts),
                    f"{c.false_accepts_an_hour:.1f}",
                ]
            sound = (
                "clean"
                if row.clips == row.grammar
                else row.clips.replace("robot40_", "").replace("db", " dB")
            )
            program = (
                f"{row.contender} ({c.threshold:.3g})"
                if c.threshold is not None and "edge" in row.contender
                else row.contender
            )
            lines.append("| " + " | ".join([row.grammar, sound, program, *facts]) + " |")
    return "\n".join(lines[1:]) + "\n"
