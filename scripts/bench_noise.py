"""Counts the words that live recognition makes of noise, by level alone and with the neural detector.

    python scripts/bench_noise.py
    python scripts/bench_noise.py --noise noise.jsonl --minutes 10 --speech an4_dev.jsonl --clips 20

Synthetic noise (silence, white, pink and brown at five levels, hum, clicks, tones) and recordings without
speech go through `LiveRecognizer` as fast as it reads them. With --speech, utterances with silence around
them are heard too: what the detector costs in words. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from edge_asr.audio import read_audio
from edge_asr.manifest import read_manifest
from edge_asr.markdown import markdown_table
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime import EndpointConfig, FileSource, Final, LiveConfig, LiveRecognizer, Recognizer

RATE = 16_000
LEVELS_DBFS = (-60, -50, -40, -30, -20)
Waveform = npt.NDArray[np.float32]


def colored(exponent: float, seconds: float, level_dbfs: float, rng: np.random.Generator) -> Waveform:
    """Noise whose power falls with frequency ** exponent (0 white, 1 pink, 2 brown), at an RMS level."""
    n = round(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / RATE), 20.0)
    noise = np.fft.irfft(spectrum / frequency ** (exponent / 2), n)
    noise *= 10 ** (level_dbfs / 20) / np.sqrt(np.mean(noise**2))
    return np.clip(noise, -1, 1).astype(np.float32)


def bursts(noise: Waveform, on_s: float, off_s: float) -> Waveform:
    """The same noise, switched on and off."""
    at = np.arange(len(noise)) / RATE % (on_s + off_s)
    return np.where(at < on_s, noise, 0).astype(np.float32)


def synthetic(seconds: float) -> Iterator[tuple[str, Waveform]]:
    """Every kind of noise that is computed, with its name."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * RATE)) / RATE
    yield "digital silence", np.zeros(len(t), np.float32)
    for name, exponent in (("white", 0), ("pink", 1), ("brown", 2)):
        steps = [colored(exponent, seconds / 5, level, rng) for level in LEVELS_DBFS]
        yield f"{name} noise, -60 to -20 dBFS", np.concatenate(steps)
    hum = sum(0.02 / k * np.sin(2 * np.pi * 50 * k * t) for k in range(1, 8))
    yield "hum, 50 Hz and harmonics", np.asarray(hum, np.float32)
    clicks = np.zeros(len(t), np.float32)
    clicks[rng.integers(0, len(t), round(2 * seconds))] = 0.8
    yield "clicks, 2 a second", clicks
    yield "bursts of white noise, 0.2 s", bursts(colored(0, seconds, -25, rng), 0.2, 0.8)
    pitches = rng.choice([262, 294, 330, 349, 392, 440, 494, 523], len(t) * 4 // RATE + 1)
    melody = np.sin(2 * np.pi * np.cumsum(pitches[(np.arange(len(t)) * 4) // RATE]) / RATE)
    envelope = np.minimum(1, (np.arange(len(t)) * 4 / RATE % 1) * 10)
    yield "a melody of tones", (0.1 * envelope * melody).astype(np.float32)


def recorded(manifest: Path, minutes: float) -> Iterator[tuple[str, Waveform]]:
    """About so many minutes of recordings, the same share of every kind."""
    kinds: dict[str, list[Waveform]] = {}
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    names = sorted({row["kind"] for row in rows})
    for row in rows:
        pieces = kinds.setdefault(row["kind"], [])
        if sum(map(len, pieces)) < minutes * 60 / len(names) * RATE:
            pieces.append(read_audio(manifest.parent / row["audio_filepath"], RATE)[: 60 * RATE])
    for name in names:
        yield f"recorded: {name.replace('_', ' ')}", np.concatenate(kinds[name])


def hear(recognizer: Recognizer, audio: Waveform, *, vad: bool) -> list[Final]:
    """All finals of a waveform."""
    config = LiveConfig(endpoint=EndpointConfig(vad=vad), partials=False)
    with LiveRecognizer(recognizer, FileSource(audio, sample_rate=RATE, pace=0), config=config) as live:
        return [event for event in live if isinstance(event, Final)]


@click.command()
@click.option("-m", "--model", default="tiny-en", show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Of each synthetic noise.")
@click.option("--noise", type=click.Path(path_type=Path), help="Manifest of recordings with their `kind`.")
@click.option("--minutes", default=10.0, show_default=True, help="Of recordings, in all.")
@click.option("--speech", type=click.Path(path_type=Path), help="Manifest of utterances.")
@click.option("--clips", default=20, show_default=True, help="How many of them.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table here too.")
def main(
    model: str,
    seconds: float,
    noise: Path | None,
    minutes: float,
    speech: Path | None,
    clips: int,
    output: Path | None,
) -> None:
    """Count words per hour of noise."""
    rows: list[list[str]] = []
    totals = {False: 0, True: 0}
    total_s = 0.0
    error_rates = {}
    with Recognizer.load(model, num_threads=1) as recognizer:
        sources = [*synthetic(seconds), *(recorded(noise, minutes) if noise else ())]
        for name, audio in sources:
            counts = {
                vad: sum(len(final.words) for final in hear(recognizer, audio, vad=vad))
                for vad in (False, True)
            }
            hours = len(audio) / RATE / 3600
            total_s += len(audio) / RATE
            for vad, count in counts.items():
                totals[vad] += count
            rows.append([name, f"{hours * 60:.1f}", *(f"{counts[vad] / hours:.0f}" for vad in (False, True))])
            print(*rows[-1], flush=True)
        if speech is not None:
            utterances = read_manifest(speech).utterances
            utterances = utterances[:: max(1, len(utterances) // clips)]
            pad = np.zeros(RATE, np.float32)
            for vad in (False, True):
                texts = []
                for utterance in utterances:
                    rng = np.random.default_rng(zlib.crc32(utterance.text.encode()))
                    audio = np.concatenate([pad, read_audio(utterance.audio_path, RATE), pad])
                    audio += 10 ** (-65 / 20) * rng.standard_normal(len(audio)).astype(np.float32)
                    texts.append(" ".join(final.text for final in hear(recognizer, audio, vad=vad)))
                rates = compute_error_rates([u.text for u in utterances], texts)
                error_rates["vad" if vad else "level"] = round(rates.wer, 4)
                print(f"WER of {len(utterances)} utterances, {'vad' if vad else 'level'}: {rates.wer:.2%}")
    per_hour = {vad: 3600 * count / total_s for vad, count in totals.items()}
    rows.append(["all", f"{total_s / 60:.1f}", *(f"{per_hour[vad]:.0f}" for vad in (False, True))])
    columns = ["noise", "minutes", "words an hour, level", "words an hour, --vad"]
    table = "\n".join(markdown_table(columns, rows))
    print(table)
    if output is not None:
        output.write_text(table + "\n", encoding="utf-8")
    print(json.dumps({"per_hour": {"level": per_hour[False], "vad": per_hour[True]}, "wer": error_rates}))


if __name__ == "__main__":
    main()
