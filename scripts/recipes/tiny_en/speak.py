#!/usr/bin/env python3
"""Makes synthetic speech with hibari-tts: one voice, many people.

    python speak.py render LIBRISPEECH_TEXT COMMON_VOICE_TEXT -o FOLDER [--exclude dev.jsonl]... [--hours 25]
    python speak.py render ... --sample 5 -o FOLDER     a few clips, and all that was drawn for them

hibari predicts, for each 12.5 ms, a pitch and smooth spectra of voice and noise, and leaves the rest to a
vocoder. So another person is made between the two: pitch times 0.5 to 1.5, flatter or livelier intonation,
the frequency axis of all spectra stretched by 0.82 to 1.2 (the length of the vocal tract), tilt, breath;
and the vocoder runs at 16 kHz at once, with the bins up to 8 kHz. Each of 2000 people keeps their settings;
speed (0.75 to 1.35) is drawn per clip. What is said is a mix in which every prefix is fair: 60 % sentences
or pieces of them (LibriSpeech, Common Voice), 20 % spelled words, numbers, dates and addresses, 20 %
commands; grammar in synthesize.py, with more kinds here. Written in shards of 250 clips (FLAC), each with a
manifest; FOLDER/hibari.jsonl joins those that are done. It can be stopped and started again.

What it does not do: rooms, noise and codecs, which belong to training.
"""

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import soundfile
from synthesize import GRAMMAR, LETTERS, Texts

RATE, N_FFT, HOP = 16_000, 800, 200  # hibari's 24 kHz, 1200, 300 at two thirds: the same bins of 20 Hz
N_BINS = N_FFT // 2 + 1
SHARD, N_PEOPLE = 250, 2000
WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
SPOKEN = {"mr": "mister", "mrs": "missus", "dr": "doctor", "messrs": "messieurs", "vs": "versus"}
Array = npt.NDArray[np.float32]
ExistingPath, AnyPath = click.Path(exists=True, path_type=Path), click.Path(path_type=Path)

MORE_GRAMMAR = """
hour: one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve
minute: oh <digit> | ten | fifteen | twenty | twenty five | thirty | thirty five | forty five | fifty |
 <two> *4
time: <hour> o'clock | <hour> <minute> *3 | <hour> <minute> a m | <hour> <minute> p m | half past <hour> |
 a quarter to <hour> | noon | midnight
weekday: monday | tuesday | wednesday | thursday | friday | saturday | sunday
decimal: <number> point <d> | <digit> point <d> <d> | zero point <d>
money: <number> dollars | <number> dollars and <two> cents | <two> cents | <digit> thousand dollars
unit: meters *3 | centimeters *2 | millimeters | degrees *3 | percent *2 | seconds *3 | minutes *3 | hours |
 kilograms |
 liters | miles | inches | feet
measure: <number> <unit> *4 | <decimal> <unit> | minus <number> degrees
person: <common> | <common> <common> *2
say: my name is <person> | my name is <common> that is <^common> | call <person> at <phone> |
 my number is <phone> |
 the meeting is on <weekday> <month> <ordinal> at <time> | it is <time> | wake me at <time> |
 set a timer for <number> minutes |
 set an alarm for <time> | the temperature is <measure> | it costs <money> |
 what is <number> plus <number> |
 what is <number> times <number> | the code is <zip> | the password is <letters> <area> |
 my order number is <letters> <zip> |
 flight <letters> <area> leaves at <time> | the answer is <decimal> | i was born on <date> |
 send <money> to <person> |
 the box weighs <decimal> kilograms | what is the weather like on <weekday> |
 remind me on <weekday> at <time> |
 play the next song | turn it up | turn it down | how are you today | good morning | good evening |
 thank you very much |
 yes please | no thanks | open the door | close the window | where is the nearest <place> |
 i am in the <place> |
 please repeat the last <number> words | channel <number> | page <number> | chapter <number> |
 room <number> | zone <letter> |
 version <decimal> | <weekday> <month> <ordinal> | <time> | <money> | <measure> *3 | <decimal> | <number> |
 <ordinal>
task: <command> | <say>
row: sentence *12 | spelling *4 | task *4
"""


def people_settings(index: int) -> dict[str, float]:
    """The voice of a person: factors of pitch and tract, exponent of intonation, dB of tilt and breath."""
    rng = random.Random(f"person {index}")
    male = rng.random() < 0.55
    low = rng.gauss(math.log(0.6 if male else 1.05), 0.13)
    tract = rng.gauss(0.90 if male else 1.02, 0.045)  # over 1: a shorter tract, formants higher
    return {
        "pitch": min(1.5, max(0.45, math.exp(low))),
        "tract": min(1.2, max(0.82, tract)),
        "intonation": rng.uniform(0.5, 1.5),
        "tilt_db": rng.gauss(0.0, 1.5),
        "breath_db": rng.uniform(-3.0, 6.0),
        "rough": rng.uniform(0.0, 0.03),
    }


def pulse_train(f0: Array) -> Array:
    """Harmonics of equal amplitude below 7.8 kHz, [n_frames * 200]; as in hibari/dsp.py, `pulses`."""
    positions = (np.arange(len(f0) * HOP) + 0.5) / HOP - 0.5
    f = np.interp(positions, np.arange(len(f0)), f0)
    voiced = f > 30.0
    f = np.maximum(f, 30.0)
    phase = (2 * np.pi * np.modf(np.cumsum(f) / RATE)[0]).astype(np.float32)
    order = np.floor(7800.0 / f).astype(np.float32) + 0.5
    below = 2 * np.sin(phase / 2)
    at_zero = np.abs(below) <= 2e-3
    train = np.where(at_zero, order, np.sin(order * phase) / np.where(at_zero, 1.0, below)) - 0.5
    result: Array = np.where(voiced, train, 0.0).astype(np.float32)
    return result


def vocode(outputs: list[Array], person: dict[str, float], rng: np.random.Generator) -> Array:
    """Waveform at 16 kHz of hibari's spectra ([601, n_frames] each) and pitch, as another person says it."""
    import scipy.fft

    sources = np.minimum(np.round(np.arange(N_BINS) / person["tract"]).astype(int), 600)
    harmonic, theta, noise, free, phi = (part[sources].T for part in outputs[:5])  # (n_frames, n_bins)
    f0 = outputs[5]
    voiced = f0 > 40.0
    if voiced.any():
        middle = math.exp(float(np.log(f0[voiced]).mean()))
        moved = middle * person["pitch"] * (np.maximum(f0, 40.0) / middle) ** person["intonation"]
        moved *= 1 + person["rough"] * rng.standard_normal(len(f0))
        f0 = np.where(voiced, np.clip(moved, 45.0, 500.0), 0.0).astype(np.float32)
    octaves = np.log2(np.maximum(np.arange(N_BINS), 5) / 50.0)  # from 1 kHz
    gain = (person["tilt_db"] * octaves * math.log(10) / 20).astype(np.float32)
    breath = person["breath_db"] * math.log(10) / 20

    def size(x: Array) -> Array:
        return np.exp(np.minimum(x, 7.0), dtype=np.float32)

    padded = np.pad(pulse_train(f0), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][: len(f0)] * (
        WINDOW / (N_FFT / 4)
    )
    spectrum = scipy.fft.rfft(frames, axis=1).astype(np.complex64)
    spectrum *= size(harmonic + gain) * np.exp(1j * np.pi * np.tanh(theta)).astype(np.complex64)
    normal = rng.standard_normal((len(f0), 2 * N_BINS), dtype=np.float32).view(np.complex64)
    spectrum += size(noise + gain + np.float32(breath)) * normal
    spectrum += size(free + gain) * np.exp(1j * phi).astype(np.complex64)
    parts = (scipy.fft.irfft(spectrum, N_FFT, axis=1).astype(np.float32) * WINDOW).reshape(len(f0), 4, HOP)
    waveform = np.zeros((len(f0) + 3, HOP), np.float32)
    for k in range(4):
        waveform[k : k + len(f0)] += parts[:, k]
    result: Array = waveform.reshape(-1)[N_FFT // 2 : N_FFT // 2 + len(f0) * HOP]
    return result


class Speaker:
    """hibari's network and pronunciation."""

    def __init__(self) -> None:
        from hibari import Hibari

        self.hibari = Hibari()

    def phonemes(self, text: str, kind: str, rng: random.Random) -> str:
        if kind == "sentence":
            return " ".join(self.hibari.phonemize(text.capitalize() + rng.choice([".", ".", ".", "?", ","])))
        pause, found = rng.choices([0.0, 0.15, 0.8], [0.6, 0.25, 0.15])[0], []
        for word in text.split():
            is_letter = word in LETTERS and (kind == "spelling" or word not in ("a", "i"))
            part = LETTERS[word] if is_letter else " ".join(self.hibari.phonemize(word))
            found.append(part.rstrip(".,?!") + ("," if rng.random() < pause else ""))
        if kind != "spelling" and not any(word in LETTERS for word in text.split()):
            return " ".join(
                self.hibari.phonemize(text.capitalize() + ".")
            )  # in context, sounds are more natural
        return " ".join(found).rstrip(",") + "."

    def say(self, phonemes: str, speed: float, person: dict[str, float], seed: int) -> Array:
        ids = np.asarray([self.hibari.ids(phonemes[:400])], np.int64)
        outputs = self.hibari.sess.run(None, {"ids": ids, "speed": np.asarray([speed], np.float32)})
        return vocode([part[0] for part in outputs], person, np.random.default_rng(seed))


def read_sentences(path: Path) -> list[str]:
    lines = {
        " ".join(SPOKEN.get(word, word) for word in line.lower().split())
        for line in path.read_text("utf-8").splitlines()
    }
    return sorted(
        line
        for line in lines
        if len(line.split()) >= 3 and all(c in "abcdefghijklmnopqrstuvwxyz' " for c in line)
    )


def plan(paths: tuple[Path, ...], held_out: list[str], n_clips: int, seed: int) -> list[dict[str, Any]]:
    """The same list for the same texts and seed, whatever is rendered of it."""
    rng = random.Random(seed)
    pools = [read_sentences(path) for path in paths]
    texts = Texts(rng, [line for pool in pools for line in pool if len(line.split()) >= 4])
    merged = "\n".join((GRAMMAR.strip() + "\n" + MORE_GRAMMAR.strip()).replace("\n ", " ").splitlines())
    for rule in merged.splitlines():
        name, alternatives = rule.split(": ")
        weighted = [alternative.partition(" *") for alternative in alternatives.split(" | ")]
        texts.rules[name] = [text for text, _, copies in weighted for _ in range(int(copies or 1))]
        texts.decks[name] = []
    decks: list[list[str]] = [[] for _ in pools]
    excluded, forbidden = set(held_out), "|".join(f" {text} " for text in held_out if len(text.split()) > 3)
    rows: list[dict[str, Any]] = []
    while len(rows) < n_clips:
        kind = texts.deal("row")
        if (
            kind == "sentence"
        ):  # whole sentences of either source in turn; long ones in pieces of 6 to 24 words
            which = rng.randrange(len(pools))
            decks[which] = decks[which] or rng.sample(pools[which], len(pools[which]))
            words = decks[which].pop().split()
            length = min(len(words), rng.randint(6, 24))
            start = rng.randrange(len(words) - length + 1)
            text = " ".join(words[start : start + length])
        else:
            text = texts.deal(kind)
        if text in excluded or (len(text.split()) > 3 and f" {text} " in forbidden):
            continue
        speed = round(min(1.35, max(0.75, rng.gauss(1.02, 0.14))), 3)
        rows.append(
            {
                "kind": kind,
                "text": text,
                "person": rng.randrange(N_PEOPLE),
                "speed": speed,
                "peak_db": round(rng.uniform(-16, -1), 1),
            }
        )
    return rows


def write_atomically(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


@click.group(help=__doc__)
def main() -> None: ...


@main.command()
@click.argument("texts", type=ExistingPath, nargs=-1, required=True)
@click.option("-o", "--output", type=AnyPath, required=True)
@click.option("--exclude", type=ExistingPath, multiple=True, help="Held-out manifest.")
@click.option(
    "--hours", type=float, default=25.0, show_default=True, help="Stop after so many hours of sound."
)
@click.option("--max-clips", type=int, default=30_000, show_default=True)
@click.option("--seed", type=int, default=17, show_default=True, help="Another seed, other clips.")
@click.option("--sample", type=int, default=0, help="Only so many clips, without manifests.")
def render(
    texts: tuple[Path, ...],
    output: Path,
    exclude: tuple[Path, ...],
    hours: float,
    max_clips: int,
    seed: int,
    sample: int,
) -> None:
    """Say the sentences of TEXTS and of the grammar."""
    held_out = [json.loads(line)["text"] for path in exclude for line in path.read_text("utf-8").splitlines()]
    rows, speaker = plan(texts, held_out, max_clips, seed), Speaker()
    begin, total_s, made_s, joined = time.process_time(), 0.0, 0.0, []
    output.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(rows), SHARD):
        folder = output / f"{first // SHARD:03d}"
        manifest = output / f"hibari_{first // SHARD:03d}.jsonl"
        if manifest.exists():
            entries = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
        else:
            folder.mkdir(exist_ok=True)
            entries = []
            for index in range(first, min(first + (sample or SHARD), len(rows))):
                row = rows[index]
                person, rng = people_settings(row["person"]), random.Random(f"clip {index}")
                path = folder / f"h{index:05d}.flac"
                phonemes = speaker.phonemes(row["text"], row["kind"], rng)
                waveform = speaker.say(phonemes, row["speed"], person, index)
                peak = float(np.abs(waveform).max(initial=0.0))
                if not math.isfinite(peak) or peak < 1e-4 or len(waveform) < 0.3 * RATE:
                    continue
                soundfile.write(
                    path, waveform * (10 ** (row["peak_db"] / 20) / peak), RATE, "PCM_16", format="FLAC"
                )
                entry = {
                    "audio_filepath": str(path.resolve()),
                    "duration": round(len(waveform) / RATE, 3),
                    "text": row["text"],
                }
                entries.append({**entry, "speaker": f"hibari-{row['person']:04d}", "kind": row["kind"]})
                made_s += len(waveform) / RATE
                if sample:
                    click.echo(f"{path.name} {row['text']!r} {phonemes} {person}")
            if sample:
                write_atomically(output / "sample.jsonl", entries)
                click.echo(f"{made_s / (time.process_time() - begin):.0f} times real time of the processor")
                return
            write_atomically(manifest, entries)
        joined += entries
        total_s += sum(float(entry["duration"]) for entry in entries)
        if made_s:
            write_atomically(output / "hibari.jsonl", joined)
            spent = time.process_time() - begin
            pace = f"{total_s / 3600:.2f} h, {made_s / spent:.0f} times real time"
            click.echo(f"shard {first // SHARD}: {len(joined)} clips, {pace}", err=True)
        if total_s >= hours * 3600:
            break


if __name__ == "__main__":
    main()
