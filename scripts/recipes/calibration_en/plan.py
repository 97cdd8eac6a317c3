"""Plans the embedded calibration speech: who says each line of texts.tsv, how fast and how loud.

The list goes to `synthesize.py render` of the tiny_en recipe, which also brings Kokoro-82M (`fetch`); this
file makes no sound. Voices are dealt in turn, so that each English one leads at least once; levels spread
evenly over 26 dB, from a distant speaker to one who nearly overloads the microphone. Needs espeak-ng.
"""

import json
import random
import sys
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tiny_en"))
from synthesize import phonemize, phonemize_spelling  # noqa: E402 - a loose script, found by the line above

LOUDEST_PEAK_DB, QUIETEST_PEAK_DB = -1.0, -27.0


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New list.")
@click.option("--kokoro", type=click.Path(exists=True, path_type=Path), required=True, help="Made by fetch.")
@click.option("--seed", type=int, default=29, show_default=True)
def main(output: Path, kokoro: Path, seed: int) -> None:
    rng = random.Random(seed)
    lines = (HERE / "texts.tsv").read_text("utf-8").splitlines()
    english = sorted(f.stem for f in (kokoro / "voices").glob("[ab]*.bin") if not f.stem.endswith("_santa"))
    leads = rng.sample(english, len(english))
    step = (QUIETEST_PEAK_DB - LOUDEST_PEAK_DB) / (len(lines) - 1)
    peaks = rng.sample([LOUDEST_PEAK_DB + i * step for i in range(len(lines))], len(lines))
    with output.open("x", encoding="utf-8") as file:
        for i, line in enumerate(lines):
            kind, text = line.split("\t")
            lead, second = leads[i % len(leads)], rng.choice(english)
            share = round(rng.uniform(0.6, 0.9), 2) if second != lead and i % 2 else 1.0
            british = lead[0] == "b"
            speak = phonemize_spelling(text, british, rng) if kind == "spelling" else phonemize(text, british)
            row = {
                "id": f"c{seed}-{i:02d}",
                "kind": kind,
                "text": text,
                "phonemes": speak + ".",
                "voices": [[lead, share]] + ([[second, round(1.0 - share, 2)]] if share < 1.0 else []),
                "speed": round(min(1.3, max(0.75, rng.gauss(1.0, 0.13))), 3),
                "peak_db": round(peaks[i], 1),
            }
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
