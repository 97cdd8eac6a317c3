"""Deals the speech of manifests in strata of duration and level, in an order that is fair to each.

Rows are dealt by a hash of seed and row, not by a random generator, so the order is the same on
every machine. Durations are taken from the manifest (or the file's header). Levels are measured by decoding,
and no more is decoded than a choice needs.
What this file does not do: decide how much is taken, or what is added (calibration_set.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_asr.audio import AudioFile
from edge_asr.calibration.clips import MAX_CLIP_S, measure_rms_dbfs, read_beginning
from edge_asr.errors import AudioError
from edge_asr.manifest import BadRow, Manifest, Reason, Utterance

N_DURATION_STRATA, N_LEVEL_STRATA = 4, 3
MIN_CLIP_S = 0.1
_TOO_SHORT = f"{{:.3f}} s; at least {MIN_CLIP_S:g} s are needed"

_MIN_ROWS = 2000
"""Least number of rows whose duration is read, if there are as many: enough for the quantiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechRow:
    """A row of known length and, once decoded, of known level."""

    source: str
    utterance: Utterance
    duration_s: float
    n_samples: int = 0
    rms_dbfs: float = -math.inf
    is_whole: bool = True
    stratum: str = ""


def deal_rows(
    manifests: Sequence[Manifest], wanted_s: float, seed: int, bad: list[BadRow]
) -> list[SpeechRow]:
    """Deal `wanted_s` seconds of rows, or all, in an order given by `seed`; append unusable ones to `bad`."""
    keyed: list[tuple[str, str, Utterance]] = []
    for index, manifest in enumerate(manifests):
        for utterance in manifest.utterances:
            label = f"{seed}\0{index}\0{utterance.row}\0{utterance.id}"
            keyed.append((hashlib.sha256(label.encode()).hexdigest(), manifest.name, utterance))
    keyed.sort(key=lambda item: item[0])
    rows: list[SpeechRow] = []
    seen: set[Path] = set()
    total_s = 0.0
    for _, source, utterance in keyed:
        if len(rows) >= _MIN_ROWS and total_s >= wanted_s:
            break
        if utterance.audio_path in seen:  # the same recording in two manifests, or twice in one
            continue
        seen.add(utterance.audio_path)
        try:
            duration_s = utterance.duration_s or _read_duration(utterance.audio_path)
        except AudioError as error:
            bad.append(_bad_row(source, utterance, error))
            continue
        if duration_s < MIN_CLIP_S:
            bad.append(_bad_row(source, utterance, _TOO_SHORT.format(duration_s)))
            continue
        duration_s = min(duration_s, MAX_CLIP_S)
        rows.append(SpeechRow(source=source, utterance=utterance, duration_s=duration_s))
        total_s += duration_s
    return rows


def _read_duration(path: Path) -> float:
    with AudioFile(path) as file:
        return file.duration_s


def _bad_row(source: str, utterance: Utterance, problem: AudioError | str) -> BadRow:
    reason: Reason = "clip too short"
    if isinstance(problem, AudioError):
        reason = "undecodable audio" if utterance.audio_path.is_file() else "missing audio file"
    return BadRow(source=source, row=utterance.row, id=utterance.id, reason=reason, detail=str(problem))


def measure_levels(
    rows: Sequence[SpeechRow], wanted_s: float, sample_rate: int, bad: list[BadRow]
) -> list[list[SpeechRow]]:
    """Decode about `wanted_s` seconds of rows; return them by stratum (duration, level), in dealt order."""
    strata: list[list[SpeechRow]] = []
    for group in _split(rows, N_DURATION_STRATA, by=lambda row: row.duration_s):
        measured: list[SpeechRow] = []
        total_s = 0.0
        for row in group:
            if total_s >= wanted_s / N_DURATION_STRATA:
                break
            try:
                heard = _measure(row, sample_rate)
            except AudioError as error:
                bad.append(_bad_row(row.source, row.utterance, error))
                continue
            if heard.duration_s < MIN_CLIP_S:
                bad.append(_bad_row(row.source, row.utterance, _TOO_SHORT.format(heard.duration_s)))
                continue
            measured.append(heard)
            total_s += heard.duration_s
        # Rounded, so that differences between decoders do not move a clip to another stratum.
        for cell in _split(measured, N_LEVEL_STRATA, by=lambda row: round(row.rms_dbfs, 1)):
            seconds, levels = [row.duration_s for row in cell], [row.rms_dbfs for row in cell]
            label = f"{min(seconds):.1f} to {max(seconds):.1f} s, {min(levels):.1f} to {max(levels):.1f} dBFS"
            strata.append([dataclasses.replace(row, stratum=label) for row in cell])
    return strata


def _measure(row: SpeechRow, sample_rate: int) -> SpeechRow:
    max_samples = round(MAX_CLIP_S * sample_rate)
    waveform = read_beginning(row.utterance.audio_path, sample_rate, max_samples)
    return dataclasses.replace(
        row,
        duration_s=len(waveform) / sample_rate,
        n_samples=len(waveform),
        rms_dbfs=measure_rms_dbfs(waveform),
        is_whole=len(waveform) < max_samples,
    )


def _split(
    rows: Sequence[SpeechRow], n_groups: int, *, by: Callable[[SpeechRow], float]
) -> list[list[SpeechRow]]:
    """Split rows into groups of rising `by` and about equal seconds, none empty, keeping their order."""
    total_s = sum(row.duration_s for row in rows)
    groups = [0] * len(rows)
    before_s = 0.0
    for index in sorted(range(len(rows)), key=lambda index: by(rows[index])):
        middle_s = before_s + rows[index].duration_s / 2
        groups[index] = min(int(n_groups * middle_s / total_s), n_groups - 1)
        before_s += rows[index].duration_s
    split = [[row for row, at in zip(rows, groups, strict=True) if at == group] for group in range(n_groups)]
    return [group for group in split if group]


def balance_strata(strata: Sequence[Sequence[SpeechRow]]) -> list[SpeechRow]:
    """Order all rows so that every beginning gives the strata about equal seconds."""
    given_s = [0.0] * len(strata)
    n_given = [0] * len(strata)
    order: list[SpeechRow] = []
    for _ in range(sum(map(len, strata))):
        open_strata = [index for index, stratum in enumerate(strata) if n_given[index] < len(stratum)]
        poorest = min(open_strata, key=lambda index: given_s[index])
        row = strata[poorest][n_given[poorest]]
        n_given[poorest] += 1
        given_s[poorest] += row.duration_s
        order.append(row)
    return order
