#!/usr/bin/env python3
"""Chooses the machine labels that can be trusted and writes them as a manifest.

    python select_labels.py LABELS... -o manifest.jsonl [--log-prob -0.6] [--exclude-texts dev.jsonl]...
    python select_labels.py LABELS... --measure

`--measure` is for clips whose manifest had the truth: WER and share of time kept, for pairs of thresholds.

LABELS is a folder made by label.py, also one that is still being filled. A clip is kept if its best guess
consists of letters alone, its mean log-probability is high, the words of its other guesses agree with it,
it has 3 to 22 letters a second, does not repeat itself and is speech. The row of the manifest keeps
`log_prob` and `agreement`, so that training can choose more strictly.

What it does not do: correct a guess.
"""

import difflib
import json
import re
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import click

ExistingPath, AnyPath = click.Path(exists=True, path_type=Path), click.Path(path_type=Path)
SPOKEN = {"mr": "mister", "mrs": "missus", "dr": "doctor", "vs": "versus", "etc": "et cetera"}
UNCLEAR = {
    "st",
    "ft",
    "jr",
    "sr",
    "no",
    "lt",
    "col",
    "gen",
    "prof",
    "rev",
    "vol",
}  # "no." is a number, "no" is not


def spoken_text(guess: str) -> str | None:
    """Lower case letters, apostrophes and spaces; None where the spoken form is not certain."""
    text = unicodedata.normalize("NFKD", guess.replace("’", "'").replace("‘", "'"))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    words = []
    for word in re.sub(r"[\-–—…\"“”,;:!?]", " ", text).split():
        bare = word.strip(".")
        if word.endswith(".") and bare in UNCLEAR and not text.endswith(word):
            return None
        words += SPOKEN.get(bare, bare.replace(".", " ")).split()
    words = [word.strip("'") for word in words]
    text = " ".join(word for word in words if word)
    return text if re.fullmatch(r"[a-z' ]+", text) else None


def judge(row: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest's row with `text`, `log_prob`, `agreement`; None if nothing could be kept."""
    (guess, log_prob), others = row["guesses"][0], row["guesses"][1:]
    text = spoken_text(guess)
    if not text:
        return None
    letters = len(text.replace(" ", ""))
    compression = len(text) / len(zlib.compress(text.encode()))
    if not 3 <= letters / row["duration"] <= 22 or compression > 1.8 or row["no_speech"] > 0.6:
        return None
    words, shares = text.split(), []
    for other, _ in others:
        matcher = difflib.SequenceMatcher(None, words, (spoken_text(other) or "").split(), autojunk=False)
        shares.append(matcher.ratio())
    agreement = sum(shares) / len(shares) if shares else 1.0
    kept = {key: row[key] for key in ("audio_filepath", "duration")}
    return {
        **kept,
        "text": text,
        "speaker": row["speaker"],
        "log_prob": log_prob,
        "agreement": round(agreement, 3),
    }


def word_errors(truth: str, guess: str) -> int:
    reference, hypothesis = truth.split(), guess.split()
    costs = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        previous, costs[0] = costs[0], i
        for j, other in enumerate(hypothesis, 1):
            previous, costs[j] = costs[j], min(previous + (word != other), costs[j] + 1, costs[j - 1] + 1)
    return costs[-1]


def measure(rows: list[dict[str, Any]]) -> None:
    judged = [(row, judge(row)) for row in rows]
    n_words = sum(len(row["text"].split()) for row in rows)
    errors = sum(word_errors(row["text"], spoken_text(row["guesses"][0][0]) or "") for row in rows)
    click.echo(f"all {len(rows)} clips: WER {100 * errors / n_words:.1f} %")
    for log_prob in (-9.0, -1.0, -0.8, -0.6, -0.5, -0.4, -0.3, -0.2):
        for agreement in (0.0, 0.6, 0.7, 0.8, 0.9):
            kept = [
                (row, new)
                for row, new in judged
                if new and new["log_prob"] >= log_prob and new["agreement"] >= agreement
            ]
            words = sum(len(row["text"].split()) for row, _ in kept)
            errors = sum(word_errors(row["text"], new["text"]) for row, new in kept)
            share = sum(row["duration"] for row, _ in kept) / sum(row["duration"] for row in rows)
            limits = f"log-prob >= {log_prob:4.1f}, agreement >= {agreement:.1f}"
            wer = 100 * errors / max(1, words)
            click.echo(f"{limits}: {100 * share:5.1f} % of the time kept, WER {wer:.1f} %")


@click.command(help=__doc__)
@click.argument("labels", type=ExistingPath, nargs=-1, required=True)
@click.option("-o", "--output", type=AnyPath)
@click.option("--log-prob", type=float, default=-0.6, show_default=True)
@click.option("--agreement", type=float, default=0.7, show_default=True)
@click.option(
    "--exclude-texts", type=ExistingPath, multiple=True, help="Held-out manifest: its sentences are left out."
)
@click.option("--measure", "measuring", is_flag=True)
def main(
    labels: tuple[Path, ...],
    output: Path | None,
    log_prob: float,
    agreement: float,
    exclude_texts: tuple[Path, ...],
    measuring: bool,
) -> None:
    rows = [
        json.loads(line)
        for folder in labels
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    if measuring:
        measure(rows)
    if output is None:
        return
    held_out = {
        json.loads(line)["text"] for path in exclude_texts for line in path.read_text("utf-8").splitlines()
    }
    judged = [new for row in rows if (new := judge(row))]
    kept = [
        new
        for new in judged
        if new["log_prob"] >= log_prob and new["agreement"] >= agreement and new["text"] not in held_out
    ]
    partial = output.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    partial.replace(output)
    hours, all_hours = (sum(row["duration"] for row in part) / 3600 for part in (kept, rows))
    click.echo(f"{len(kept)} of {len(rows)} clips, {hours:.2f} h of {all_hours:.2f} h")


if __name__ == "__main__":
    main()
