#!/usr/bin/env python3
"""Makes the speech of bench_grammar.py: commands said by hibari-tts, and the same in noise.

    python scripts/grammars/clips.py FOLDER --noise noise.jsonl

FOLDER gets robot40.txt, robot200.txt and robot1000.txt (grammars), and for each of them a manifest of
commands. The 40 are said by three people each, and 120 of those that the larger grammars add by one each; a
person is a voice of the recipe's speak.py beyond the 2000 that made training data. robot40_20db.jsonl, _10db
and _5db are the clips of the 40 in recorded noise at that ratio, mixed as in training. It needs hibari-tts,
and no more than 2 minutes.
What this file does not do: recognize.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts/recipes/tiny_en"), str(ROOT)]

from speak import N_PEOPLE, RATE, Speaker, people_settings  # noqa: E402

from edge_asr.training.augment import add_noise  # noqa: E402
from edge_asr.training.noise import NoisePool  # noqa: E402
from grammars.commands import make_commands  # noqa: E402

SIZES = (40, 200, 1000)
N_PER_SIZE = 120
RATIOS_DB = (20, 10, 5)
EDGE_S = 0.3


def main() -> None:
    """Write grammars, clips and manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--noise", type=Path, required=True, help="manifest of recorded noise")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = random.Random(11)
    speaker, said, people = Speaker(), {}, iter(range(N_PEOPLE, 10 * N_PEOPLE))
    for smaller, size in zip((0, *SIZES), SIZES, strict=False):
        commands = make_commands(size)
        (folder / f"robot{size}.txt").write_text("\n".join(commands) + "\n")
        added = commands[smaller:]
        times = 3 if size == SIZES[0] else 1
        texts = [
            text for text in rng.sample(added, min(len(added), N_PER_SIZE // times)) for _ in range(times)
        ]
        said[size] = [say(speaker, text, next(people), folder, rng) for text in texts]
        write(folder / f"robot{size}.jsonl", said[size])
    rows = [json.loads(line) for line in arguments.noise.read_text().splitlines()]
    noises = [
        soundfile.read(arguments.noise.parent / row["audio_filepath"], dtype="int16")[0] for row in rows
    ]
    pool, chance = NoisePool(RATE, recorded=noises), np.random.default_rng(3)
    for ratio in RATIOS_DB:
        noisy = []
        for row in said[SIZES[0]]:
            name = str(row["audio_filepath"])
            clean, _ = soundfile.read(folder / name, dtype="float32")
            mixed = add_noise(clean, pool.cut("recorded", len(clean), chance), ratio)
            name = name.replace(".flac", f"_{ratio}db.flac")
            soundfile.write(folder / name, mixed / max(1.0, float(np.abs(mixed).max())), RATE, "PCM_16")
            noisy.append({**row, "audio_filepath": name})
        write(folder / f"robot{SIZES[0]}_{ratio}db.jsonl", noisy)


def say(speaker: Speaker, text: str, person: int, folder: Path, rng: random.Random) -> dict[str, object]:
    """Write one clip, with quiet around it, and return its row."""
    speed = round(min(1.35, max(0.75, rng.gauss(1.02, 0.14))), 3)
    waveform = speaker.say(speaker.phonemes(text, "task", rng), speed, people_settings(person), person)
    waveform *= 10 ** (rng.uniform(-16, -1) / 20) / float(np.abs(waveform).max())
    waveform = np.pad(waveform, round(EDGE_S * RATE))
    waveform += 3e-5 * np.random.default_rng(person).standard_normal(len(waveform)).astype(np.float32)
    name = f"clips/{person}.flac"
    soundfile.write(folder / name, waveform, RATE, "PCM_16")
    return {
        "audio_filepath": name,
        "duration": round(len(waveform) / RATE, 3),
        "text": text,
        "speaker": f"person {person}",
    }


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a manifest."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
