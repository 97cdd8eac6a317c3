#!/usr/bin/env python3
"""Write down what a bundle hears, or compare two such records, as scripts/test_arm64 does for two processors.

    python scripts/arm64_words.py BUNDLE CLIP... > here.json
    python scripts/arm64_words.py --compare here.json there.json

A record holds, for each precision and clip, the text, the likeliest token of each frame (of the first 20 s),
and the text of the same clip heard live, through the streaming graph if the bundle has one. A comparison
prints a table, counts the frames that differ, and exits with 3 if a word does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edge_asr.markdown import markdown_table

Record = dict[str, dict[str, dict[str, Any]]]


def hear(bundle: str, clips: list[str]) -> Record:
    """Transcribe every clip in every precision, at once and live."""
    from edge_asr.audio import read_audio
    from edge_asr.bundle.folder import Bundle
    from edge_asr.runtime import FileSource, Final, LiveRecognizer, Recognizer

    record: Record = {}
    for precision in [artifact.precision for artifact in Bundle.load(bundle).info.artifacts]:
        recognizer = Recognizer.load(bundle, precision=precision, backend="cpu", num_threads=1)
        heard = record.setdefault(precision, {})
        for clip in clips:
            waveform = read_audio(Path(clip), 16_000)
            with LiveRecognizer(recognizer, FileSource(clip, pace=0)) as live:
                finals = [event.text for event in live if isinstance(event, Final)]
            heard[Path(clip).name] = {
                "text": recognizer.transcribe(waveform, 16_000).text,
                "frames": recognizer.log_probs(waveform[: 20 * 16_000], 16_000).argmax(axis=-1).tolist(),
                "live": " ".join(finals),
            }
    return record


def compare(here: Record, there: Record) -> tuple[list[str], bool]:
    """Return a table of both records, and whether all words are equal."""
    rows, equal = [], True
    for precision, clips in here.items():
        texts = live = frames = total = 0
        for name, ours in clips.items():
            theirs = there[precision][name]
            texts += ours["text"] == theirs["text"]
            live += ours["live"] == theirs["live"]
            total += len(ours["frames"])
            frames += sum(a != b for a, b in zip(ours["frames"], theirs["frames"], strict=True))
        equal = equal and texts == live == len(clips)
        n = len(clips)
        rows.append([precision, f"{texts} of {n}", f"{live} of {n}", f"{frames} of {total}"])
    heading = ["precision", "texts equal", "live texts equal", "frames whose token differs"]
    return markdown_table(heading, rows, "lrrr"), equal


def main() -> int:
    """Run the command line."""
    if sys.argv[1:2] == ["--compare"]:
        here, there = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[2:4])
        table, equal = compare(here, there)
        print("\n".join(table))
        return 0 if equal else 3
    print(json.dumps(hear(sys.argv[1], sys.argv[2:])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
