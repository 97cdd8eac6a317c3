#!/usr/bin/env python3
"""Transcribes the clips of a manifest with Whisper, five guesses each, and keeps the encoder's states.

    python label.py WHISPER MANIFEST -o FOLDER [--no-states] [--no-text] [--beam 5] [--digits]

WHISPER is a folder with a CTranslate2 Whisper and its tokenizer.json. Several clips share a window (see
whisper_encoder.py); each is then decoded from its own states, followed by states of silence: from a bare
slice, Whisper says everything twice. No timestamps; digits and signs are forbidden, so that numbers come as
words. Every `--group` windows, FOLDER gets NNNNN.jsonl (the manifest's rows and `guesses`, each [text, mean
log-probability of its tokens], best first, and `no_speech`) and NNNNN.npz (a float16 [T, d_model] for each
row, 25 frames a second: the mean of two states, frame k covering 40 k to 40 k + 40 ms). It can be stopped
and started again: groups that are there are not made again.

What it does not do: choose what can be trusted (select_labels.py).
"""

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import click
import ctranslate2
import numpy as np
import numpy.typing as npt
import soundfile
import tokenizers
import torch
from faster_whisper.feature_extractor import FeatureExtractor
from whisper_encoder import RATE, WhisperEncoder, encode_clips, pack_clips

GAP_S, WINDOW_S = 0.5, 29.6
SLICE_STATES = 25  # slices end on multiples of half a second, reaching into the gap
# On 120 clips of commonvoice_dev: WER 61 % with 100 states of silence after a slice, 25 % with 300, 14 % with
# 700 and with as many as make 1100 states in all; 15 % for each clip alone in a window of 1500.
N_STATES, MIN_QUIET, QUIET_FROM = 1100, 500, 150
ExistingPath, AnyPath = click.Path(exists=True, path_type=Path), click.Path(path_type=Path)
Array = npt.NDArray[np.float32]


class Decoder:
    """CTranslate2's decoder, fed with states."""

    def __init__(self, folder: Path, beam: int, digits: bool) -> None:
        self.model = ctranslate2.models.Whisper(
            str(folder), device="cpu", compute_type="int8", intra_threads=1, inter_threads=1
        )
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        vocabulary = self.tokenizer.get_vocab()
        ids = [vocabulary["<|startoftranscript|>"]]
        if self.model.is_multilingual:
            ids += [vocabulary["<|en|>"], vocabulary["<|transcribe|>"]]
        self.prompt = [*ids, vocabulary["<|notimestamps|>"]]
        end = vocabulary["<|endoftext|>"]
        odd = [
            i
            for token, i in vocabulary.items()
            if i < end and re.search(r"[0-9$%&@#*+=<>_~^{}|\\/\[\]()]", token)
        ]
        self.suppressed, self.beam = [-1] if digits else [-1, *sorted(odd)], beam

    def __call__(self, states: Array) -> list[tuple[list[tuple[str, float]], float]]:
        """Guesses and the no-speech probability for each of [B, T, d_model]."""
        results = self.model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(states)),
            [self.prompt] * len(states),
            beam_size=self.beam,
            num_hypotheses=self.beam,
            max_length=min(224, len(self.prompt) + 10 + int(states.shape[1] * 0.02 * 8)),
            suppress_tokens=self.suppressed,
            return_scores=True,
            return_no_speech_prob=True,
        )
        found = []
        for result in results:
            texts = [self.tokenizer.decode(ids).strip() for ids in result.sequences_ids]
            means = [
                score * len(ids) / (len(ids) + 1)
                for score, ids in zip(result.scores, result.sequences_ids, strict=True)
            ]
            found.append(
                (
                    list(zip(texts, (round(m, 4) for m in means), strict=True)),
                    round(float(result.no_speech_prob), 4),
                )
            )
        return found


def read_clip(path: str) -> Array:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != RATE or samples.ndim != 1:
        raise click.ClickException(f"{path}: {rate} Hz, {samples.ndim} dimensions; it takes 16 kHz mono")
    waveform: Array = samples
    return waveform


def followed_by_silence(states: Array, n_states: int, place: int, quiet: Array) -> Array:
    """The first `n_states` of `states` and their gap, then states of silence from the same place on.

    `quiet` is a whole window, [1500, d_model], with speech in its first 2 s only.
    """
    wanted = -(-n_states // SLICE_STATES) * SLICE_STATES
    part = states[:wanted]
    part = np.concatenate([part, np.repeat(part[-1:], wanted - len(part), 0)])
    n_quiet = max(N_STATES - wanted, MIN_QUIET)
    after = max(QUIET_FROM, min(place + wanted, len(quiet) - n_quiet))
    result: Array = np.concatenate([part, quiet[after:], quiet[QUIET_FROM:]])[: wanted + n_quiet]
    return result


def frames_from_states(states: Array) -> npt.NDArray[np.float16]:
    even = states if len(states) % 2 == 0 else np.concatenate([states, states[-1:]])
    frames: npt.NDArray[np.float16] = even.reshape(-1, 2, even.shape[1]).mean(1).astype(np.float16)
    return frames


@click.command(help=__doc__)
@click.argument("whisper", type=ExistingPath)
@click.argument("manifest", type=ExistingPath)
@click.option("-o", "--output", type=AnyPath, required=True, help="Folder for the groups.")
@click.option("--beam", type=int, default=5, show_default=True)
@click.option(
    "--heads", type=int, default=8, show_default=True, help="Attention heads of the encoder: tiny 6, base 8."
)
@click.option("--group", type=int, default=16, show_default=True, help="Windows a group.")
@click.option("--ahead", type=int, default=16, show_default=True, help="Windows that are filled at a time.")
@click.option("--batch-size", type=int, default=8, show_default=True)
@click.option("--max-groups", type=int, default=10**9)
@click.option("--states/--no-states", default=True)
@click.option("--text/--no-text", default=True, help="--no-text: states only.")
@click.option("--digits", is_flag=True, help="Allow digits and signs.")
def main(
    whisper: Path,
    manifest: Path,
    output: Path,
    beam: int,
    heads: int,
    group: int,
    ahead: int,
    batch_size: int,
    max_groups: int,
    states: bool,
    text: bool,
    digits: bool,
) -> None:
    torch.set_num_threads(1)
    encoder, decoder = WhisperEncoder(whisper / "model.bin", heads), Decoder(whisper, beam, digits)
    filters = FeatureExtractor(feature_size=80).mel_filters.astype(np.float32)
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    for row in rows:
        row["audio_filepath"] = str((manifest.parent / row["audio_filepath"]).resolve())
    rows = [row for row in rows if 0.3 <= row["duration"] <= WINDOW_S - GAP_S]
    random.Random(0).shuffle(rows)
    windows = list(pack_clips([row["duration"] for row in rows], GAP_S, WINDOW_S, ahead))
    output.mkdir(parents=True, exist_ok=True)
    quiet = encode_clips(encoder, [read_clip(rows[0]["audio_filepath"])[: 2 * RATE]], filters, whole=True)[0]
    begin, done_s = time.process_time(), 0.0
    for number, first in enumerate(range(0, len(windows), group)):
        target = output / f"{number:05d}.jsonl"
        if number >= max_groups:
            break
        if target.exists():
            continue
        indices: list[int] = []
        found: list[Array] = []
        slices: list[Array] = []
        for window in windows[first : first + group]:
            waveforms = [read_clip(rows[i]["audio_filepath"]) for i in window]
            # Each waveform comes with its gap, so that slices may reach into the silence.
            longer = [np.pad(w, (0, round(GAP_S * RATE))) for w in waveforms]
            place = 0
            for i, waveform, part in zip(
                window, waveforms, encode_clips(encoder, longer, filters, 0.0), strict=True
            ):
                n_states = -(-len(waveform) // 320)
                indices.append(i)
                found.append(part[:n_states])
                slices.append(followed_by_silence(part, n_states, place, quiet))
                place += len(part)
        made: list[dict[str, Any]] = [dict(rows[i]) for i in indices]
        if text:
            order = sorted(range(len(slices)), key=lambda k: len(slices[k]))
            while order:
                batch = [k for k in order[:batch_size] if len(slices[k]) == len(slices[order[0]])]
                order = order[len(batch) :]
                for k, (guesses, no_speech) in zip(
                    batch, decoder(np.stack([slices[k] for k in batch])), strict=True
                ):
                    made[k] |= {"guesses": guesses, "no_speech": no_speech}
        if states:
            partial = output / f"{number:05d}.partial.npz"
            arrays: dict[str, Any] = {str(k): frames_from_states(part) for k, part in enumerate(found)}
            np.savez(partial, **arrays)
            partial.replace(output / f"{number:05d}.npz")
        partial = target.with_suffix(".partial")
        partial.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8"
        )
        partial.replace(target)
        done_s += sum(float(row["duration"]) for row in made)
        spent = time.process_time() - begin
        hours, pace, n_groups = done_s / 3600, done_s / spent, -(-len(windows) // group)
        click.echo(f"group {number + 1} of {n_groups}: {hours:.2f} h, {pace:.0f} times real time", err=True)


if __name__ == "__main__":
    main()
