#!/usr/bin/env python3
"""Alignment measured: borders of words on speech whose borders are known, words that are not there, hours.

Borders: hibari-tts (pip install hibari-tts; the model is in the wheel) says the texts; how long each phoneme
lasts is a tensor of its network, in steps of 25 ms, so the words' borders are known. It counts silence before
a pause to the last phoneme; what is 35 dB below the loudest is taken off. --reference takes a manifest of
other recordings instead: JSON Lines with "words", [begin, end] in seconds of each word of "text".
Words: in each clip that is long enough three words of another text are inserted at random; they should not be
found, all others should. Hours: the clips one after another, with the text of each 20th missing, and a text
without sound after each 25th, are aligned as one file, and transcribed, in this process; times are of the
processor.

    python scripts/bench_alignment.py texts.txt
    python scripts/bench_alignment.py texts.txt --hours 1
    python scripts/bench_alignment.py --reference grid.jsonl

The goals are a median of 60 ms and a 90th percentile of 150 ms; the exit code is 3 if they are missed. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from edge_asr.audio import read_audio
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.errors import AudioError, require
from edge_asr.runtime.alignment.result import AlignedWord
from edge_asr.runtime.recognizer import Recognizer

RATE = 16_000
STEP_S = 0.025
DURATIONS = "/Cast_32_output_0"  # of the phonemes, in hibari 0.2.1
FLOOR_DB = -35.0
GOAL_MS = (60.0, 150.0)
_SILENT = '.,?!;:—…"“”()'
F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A recording and the borders of its words, seconds."""

    samples: F32Array
    text: str
    words: tuple[tuple[float, float], ...]


def main() -> int:
    """Measure, print tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="?", help="sentences to say, one a line")
    parser.add_argument("--reference", type=Path, help="recordings with known borders instead")
    parser.add_argument("-m", "--model", default="tiny-en")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--hours", type=float, default=0.0)
    arguments = parser.parse_args()
    if (arguments.texts is None) == (arguments.reference is None):
        parser.error("give texts to say, or --reference")
    clips = list(
        read_reference(arguments.reference) if arguments.reference else say(arguments.texts, arguments.clips)
    )
    with Recognizer.load(arguments.model, precision=arguments.precision, num_threads=1) as recognizer:
        result: dict[str, Any] = {"bench": "alignment", "bundle": arguments.model, "n_clips": len(clips)}
        result |= measure_borders(recognizer, clips)
        result |= measure_absent(recognizer, clips)
        if arguments.hours:
            result |= measure_hours(recognizer, clips, arguments.hours)
    met = all(result["both_ms"][name] <= goal for name, goal in zip(("median", "p90"), GOAL_MS, strict=True))
    print(json.dumps(result | {"met": met}))
    return 0 if met else 3


def say(path: Path, n_clips: int) -> Iterator[Clip]:
    """Say sentences, at three speeds."""
    import onnx
    import onnxruntime

    hibari = require("hibari", extra="dev")
    from hibari import dsp

    voice, rng = hibari.Hibari(), random.Random(3)
    model = onnx.load(voice.model_path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    texts = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    rng.shuffle(texts)
    for text in texts:
        phrases = voice.phonemize(text.capitalize() + ".")
        if n_clips == 0 or len(phrases) != 1 or len(phrases[0].split()) != len(text.split()):
            continue  # what is said in one go, a word for each word
        speed = np.asarray([rng.choice([0.85, 1.0, 1.2])], np.float32)
        *spectra, steps = session.run(
            None, {"ids": np.asarray([voice.ids(phrases[0])], np.int64), "speed": speed}
        )
        begins = np.concatenate([[0], np.cumsum(np.ravel(steps))]) * STEP_S
        words: list[list[float]] = []
        is_new = True
        for place, phoneme in enumerate((c for c in phrases[0] if c in voice.vocab), start=1):
            if phoneme == " ":
                is_new = True
            elif phoneme not in _SILENT:
                if is_new:
                    words.append([begins[place], begins[place + 1]])
                words[-1][1], is_new = begins[place + 1], False
        if len(words) != len(text.split()):
            continue
        samples = dsp.synth(*(part[0] for part in spectra), np.random.default_rng(n_clips)) * 0.5
        yield Clip(resampled(samples, dsp.SR), text, trim(resampled(samples, dsp.SR), words))
        n_clips -= 1


def resampled(samples: F32Array, rate: int) -> F32Array:
    """Resample to the model's rate."""
    from edge_asr.audio import resample

    return resample(samples, rate, RATE)


def trim(samples: F32Array, words: list[list[float]]) -> tuple[tuple[float, float], ...]:
    """Take silence off both ends of each word."""
    step = RATE // 100
    n_steps = len(samples) // step
    power = (samples[: n_steps * step].reshape(n_steps, step).astype(np.float64) ** 2).mean(axis=1)
    is_loud = power > np.percentile(power, 95) * 10 ** (FLOOR_DB / 10)
    trimmed = []
    for begin, end in words:
        inside = np.flatnonzero(is_loud[round(begin * 100) : round(end * 100)]) + round(begin * 100)
        if len(inside):
            begin, end = max(begin, inside[0] / 100), min(end, (inside[-1] + 1) / 100)
        trimmed.append((float(begin), float(end)))
    return tuple(trimmed)


def read_reference(path: Path) -> Iterator[Clip]:
    """Read recordings with known borders."""
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        samples = read_audio(path.parent / row["audio_filepath"])
        yield Clip(samples, row["text"], tuple((begin, end) for begin, end in row["words"]))


def measure_borders(recognizer: Recognizer, clips: list[Clip]) -> dict[str, Any]:
    """Compare the borders of all words that are found."""
    errors: list[tuple[float, float]] = []
    n_words = 0
    for clip in clips:
        n_words += len(clip.words)
        words = recognizer.align(clip.samples, RATE, clip.text).words
        errors += border_errors(words, clip.words)
    begin, end = np.array(errors).T * 1e3
    rows = {"begin_ms": begin, "end_ms": end, "both_ms": np.concatenate((begin, end))}
    table = {name: describe(values) for name, values in rows.items()}
    print_table(
        Table(
            title=f"borders of {len(errors)} of {n_words} words",
            columns=("ms", "bias", "median", "p90"),
            rows=tuple(
                (name[:-3], *(f"{value:.0f}" for value in row.values())) for name, row in table.items()
            ),
            notes=("bias is the median of errors with their sign, later is above 0",),
        ),
        make_console(),
    )
    return {"n_words": n_words, "n_found": len(errors), **table}


def border_errors(
    words: tuple[AlignedWord, ...], borders: tuple[tuple[float, float], ...]
) -> list[tuple[float, float]]:
    """Subtract the known borders from those of the words that were found."""
    return [
        (word.start_s - begin, word.end_s - end)
        for word, (begin, end) in zip(words, borders, strict=True)
        if word.start_s is not None and word.end_s is not None
    ]


def describe(errors: npt.NDArray[np.float64]) -> dict[str, float]:
    """Bias, and median and 90th percentile of the size of errors."""
    size = np.abs(errors)
    values = (np.median(errors), np.median(size), np.percentile(size, 90))
    return dict(zip(("bias", "median", "p90"), (round(float(v), 1) for v in values), strict=True))


def measure_absent(recognizer: Recognizer, clips: list[Clip]) -> dict[str, Any]:
    """Insert words that nobody says, and count which words are found."""
    rng = random.Random(1)
    pool = [word for clip in clips for word in clip.text.split()]
    counts = {True: [0, 0], False: [0, 0]}
    for clip in clips:
        words = clip.text.split()
        place = rng.randrange(len(words) + 1)
        absent = rng.choices(pool, k=3)
        text = words[:place] + absent + words[place:]
        try:
            aligned = recognizer.align(clip.samples, RATE, " ".join(text)).words
        except AudioError:  # too short for three words more
            continue
        for index, word in enumerate(aligned):
            count = counts[not place <= index < place + 3]
            count[0] += word.found
            count[1] += 1
    shares = {
        "spoken_not_found": 1 - counts[True][0] / counts[True][1],
        "absent_not_found": 1 - counts[False][0] / counts[False][1],
    }
    print(", ".join(f"{name.replace('_', ' ')} {100 * share:.1f} %" for name, share in shares.items()))
    return {name: round(share, 4) for name, share in shares.items()}


def measure_hours(recognizer: Recognizer, clips: list[Clip], hours: float) -> dict[str, Any]:
    """Align a long file, and transcribe it."""
    rng = random.Random(2)
    texts: list[str] = []
    borders: list[tuple[float, float] | None] = []
    pause = np.zeros(RATE // 2, np.float32)
    total_s, number = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            while total_s < 3600 * hours:
                clip, number = rng.choice(clips), number + 1
                file.write(np.concatenate((clip.samples, pause)))
                if number % 20:
                    texts.append(clip.text)
                    borders += [(total_s + begin, total_s + end) for begin, end in clip.words]
                if number % 25 == 0:
                    texts.append(rng.choice(clips).text)
                    borders += [None] * len(texts[-1].split())
                total_s += len(clip.samples) / RATE + 0.5
        recognizer.align(clips[0].samples, RATE, clips[0].text)
        began = time.process_time()
        recognizer.transcribe_file(path)
        transcribe_s, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        words = recognizer.align_file(path, "\n".join(texts)).words
        align_s = time.process_time() - began
        more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    said = [(word, border) for word, border in zip(words, borders, strict=True) if border is not None]
    errors = border_errors(tuple(w for w, _ in said), tuple(b for _, b in said))
    absent = [word for word, border in zip(words, borders, strict=True) if border is None]
    result = {
        "audio_s": round(total_s),
        "align_over_transcribe": round(align_s / transcribe_s, 2),
        "more_memory_mb": round(more_mb, 1),
        "long_both_ms": describe(np.array(errors).ravel() * 1e3),
        "long_spoken_not_found": round(1 - len(errors) / len(said), 4),
        "long_absent_not_found": round(sum(not w.found for w in absent) / max(len(absent), 1), 4),
    }
    print(", ".join(f"{name} {value}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    sys.exit(main())
