"""Chooses the sound that ranges are measured on, and says exactly what was chosen.

Speech comes from manifests, stratified by duration and level, so that no kind of clip in the corpus is left
out. Some of it is joined to clips of 25 to 30 s, because activations of long inputs are larger. Other sounds
of a microphone are added: digital silence, a noise floor, room noise, full-scale noise, a clip far too quiet
and one driven into clipping.

The choice depends only on the manifests, their sound and the seed. Rows are dealt by a hash, not by a random
generator, so the choice is the same on every machine. Without a manifest, `embedded_calibration_set` gives
speech that we synthesized.
What this file does not do: run a model, measure ranges, use texts (they are only carried along).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.audio import check_sample_rate
from edge_asr.bundle.folder import EMBEDDED_MODELS
from edge_asr.calibration.clips import (
    JOINED_GAP_S,
    CalibrationClip,
    ClipKind,
    ClipPart,
    Color,
    F32Array,
    hash_file,
    make_waveform,
    measure_rms_dbfs,
)
from edge_asr.calibration.strata import SpeechRow, balance_strata, deal_rows, measure_levels
from edge_asr.errors import ConfigError, ManifestError
from edge_asr.feature_config import FeatureConfig
from edge_asr.manifest import BadRow, Manifest, read_manifest
from edge_asr.runtime.features.extractor import FeatureExtractor

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of the identity; raise it if the same parts and settings come to mean other samples."""

EMBEDDED_MANIFEST = EMBEDDED_MODELS / "calibration" / "manifest.jsonl"
EMBEDDED_MINUTES = 3.5
MIN_MINUTES = 1.0
JOINED_SHARE, JOINED_MIN_S, JOINED_MAX_S = 0.2, 25.0, 30.0

_MEASURED_OVER_ASKED = 3.0
"""Seconds decoded to measure their level, over seconds requested."""
_LOOK_AHEAD = 20
"""Clips that are searched for one that fits into a joined clip whole."""

# Speech peaks about 15 dB above its RMS, so the second clip is driven 9 dB over full scale.
_ALTERED = (("quiet", -50.0), ("clipped", -6.0))
_ALTERED_S = 4.0
QUIETEST_ALTERED_DBFS = -60.0
"""Least level of an altered recording; below it, it is noise rather than speech."""
# Name, kind, RMS in dBFS, color, seconds. -4.77 dBFS is uniform noise that just reaches full scale.
_ADDED: tuple[tuple[str, ClipKind, float, Color, float], ...] = (
    ("digital silence", "silence", -math.inf, "none", 2.0),
    ("noise floor", "noise", -78.0, "white", 2.0),
    ("room noise", "noise", -50.0, "low-passed", 3.0),
    ("full-scale noise", "noise", 10.0 * math.log10(1.0 / 3.0), "white", 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceManifest:
    """A manifest to choose from: its name, rows, and the SHA-256 of the file (of the rows of a folder)."""

    name: str
    sha256: str
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """The clips in their order, and where they come from. Sound is read clip by clip, on iteration.

    Attributes:
        clips: the clips to calibrate on.
        sample_rate: Hz of the waveforms.
        seed, minutes_asked: the settings of the choice.
        manifests: where the speech comes from.
        bad_rows: rows that were found but could not be used.
        is_synthetic: whether the speech is the embedded, synthesized one, which a report must say.
        shortfall: why the set is shorter than requested, or None.
    """

    clips: tuple[CalibrationClip, ...]
    sample_rate: int
    seed: int
    minutes_asked: float
    manifests: tuple[SourceManifest, ...]
    bad_rows: tuple[BadRow, ...] = ()
    is_synthetic: bool = False
    shortfall: str | None = None

    @property
    def minutes(self) -> float:
        """Sum the length of all clips."""
        return sum(clip.duration_s for clip in self.clips) / 60.0

    @property
    def sha256(self) -> str:
        """Hash the identity of the sound: bytes of the files, how much of each, order, gains, noise, rate.

        Files are hashed as stored, because decoders and resamplers may round
        differently from machine to machine. Names, texts and paths are not part of it.
        """
        described: list[list[Any]] = []
        for clip in self.clips:
            entry = [clip.kind, clip.color, clip.gain_db, round(clip.duration_s * self.sample_rate)]
            if clip.kind == "noise":
                entry.append(round(clip.rms_dbfs, 1))
            described.append(entry + [[part.sha256, part.n_samples] for part in clip.parts])
        identity = json.dumps([FORMAT_VERSION, self.sample_rate, self.seed, described])
        return hashlib.sha256(identity.encode()).hexdigest()

    def waveforms(self) -> Iterator[tuple[str, F32Array]]:
        """Yield (name, [S] float32 at `sample_rate`) of each clip, decoded on demand.

        Raises:
            AudioError: a file is gone, or has changed since it was chosen.
        """
        for clip in self.clips:
            yield clip.name, make_waveform(clip, self.sample_rate, self.seed)

    def features(self, config: FeatureConfig) -> Iterator[F32Array]:
        """Yield [T, n_mels] float32 of each clip, computed as in the runtime.

        Raises:
            ConfigError: `config` is for another sample rate.
            AudioError: see `waveforms`.
        """
        if config.sample_rate != self.sample_rate:
            raise ConfigError(
                f"the calibration set is at {self.sample_rate} Hz and the features are for "
                f"{config.sample_rate} Hz; choose the set with sample_rate={config.sample_rate}"
            )
        extractor = FeatureExtractor(config)
        for _, waveform in self.waveforms():
            yield extractor(waveform)

    def to_dict(self) -> dict[str, Any]:
        """Describe the set for report.json."""
        return {
            "sha256": self.sha256,
            "is_synthetic": self.is_synthetic,
            "minutes": round(self.minutes, 3),
            "minutes_asked": self.minutes_asked,
            "shortfall": self.shortfall,
            "sample_rate": self.sample_rate,
            "seed": self.seed,
            "manifests": [dataclasses.asdict(manifest) for manifest in self.manifests],
            "bad_rows": dict(Counter(row.reason for row in self.bad_rows).most_common()),
            "counts": dict(Counter(clip.kind for clip in self.clips).most_common()),
            "clips": [clip.to_dict() for clip in self.clips],
        }


def embedded_calibration_set(
    *, minutes: float = EMBEDDED_MINUTES, seed: int = 0, sample_rate: int = 16000
) -> CalibrationSet:
    """Return the set for users without speech of their own: English that we synthesized, in the package.

    Args and errors are those of `select_calibration_set`; there are 3.4 minutes of speech to choose from.
    """
    chosen = select_calibration_set(EMBEDDED_MANIFEST, minutes=minutes, seed=seed, sample_rate=sample_rate)
    return dataclasses.replace(chosen, is_synthetic=True)


def select_calibration_set(
    manifest: str | Path | Sequence[str | Path],
    *,
    minutes: float = 5.0,
    seed: int = 0,
    sample_rate: int = 16000,
) -> CalibrationSet:
    """Choose a calibration set from one or several manifests.

    Durations are taken from the manifest (or the file's header) and split into strata of equal
    total length. About three times the requested length is then decoded to measure levels, which
    are split in the same way. Clips are drawn so that each stratum gives about the same seconds.

    Args:
        manifest: JSON Lines file or corpus folder (`edge_asr.manifest.read_manifest`), or several.
        minutes: length of the set, everything included, at least 1; it is never exceeded.
        seed: another seed gives another choice.
        sample_rate: Hz of the waveforms.

    Raises:
        ConfigError: `minutes` is out of range, or no manifest is given.
        AudioError: `sample_rate` is out of range.
        ManifestError: a manifest cannot be read, or there is no usable row.
    """
    if not math.isfinite(minutes) or minutes < MIN_MINUTES:
        raise ConfigError(f"calibration minutes are {minutes:g}; give at least {MIN_MINUTES:g}")
    rate = check_sample_rate(sample_rate)
    paths = [Path(manifest)] if isinstance(manifest, (str, Path)) else [Path(path) for path in manifest]
    if not paths:
        raise ConfigError("no calibration manifest was named; give at least one")
    wanted_s = _MEASURED_OVER_ASKED * minutes * 60.0
    manifests = [read_manifest(path) for path in paths]
    bad = [row for read in manifests for row in read.bad_rows]
    speech = measure_levels(deal_rows(manifests, 2.0 * wanted_s, seed, bad), wanted_s, rate, bad)
    if not speech:
        first = f"; the first, row {bad[0].row}: {bad[0].reason} ({bad[0].detail})" if bad else ""
        raise ManifestError(f"no usable row in {', '.join(map(str, paths))}{first}; fix the manifest")
    clips, n_left = _compose(balance_strata(speech), math.floor(minutes * 60.0 * rate), rate, seed)
    minutes_chosen = sum(clip.duration_s for clip in clips) / 60.0
    shortfall = None
    if minutes_chosen < 0.95 * minutes:
        why = "no clip that is left is short enough" if n_left else "that is all the usable speech"
        shortfall = f"{minutes:g} minutes requested, {minutes_chosen:.1f} chosen: {why}"
        logger.warning("calibration set: %s", shortfall)
    if bad:
        logger.warning("calibration set: %d rows skipped, the first: %s", len(bad), bad[0].detail)
    return CalibrationSet(
        clips=clips,
        sample_rate=rate,
        seed=seed,
        minutes_asked=minutes,
        manifests=tuple(_describe(path, read) for path, read in zip(paths, manifests, strict=True)),
        bad_rows=tuple(bad),
        shortfall=shortfall,
    )


def _describe(path: Path, manifest: Manifest) -> SourceManifest:
    rows = "".join(f"{u.id}\t{u.text}\n" for u in manifest.utterances)
    sha256 = hash_file(path) if path.is_file() else hashlib.sha256(rows.encode()).hexdigest()
    n_rows = len(manifest.utterances) + len(manifest.bad_rows)
    return SourceManifest(name=manifest.name, sha256=sha256, n_rows=n_rows)


def _compose(
    order: Sequence[SpeechRow], n_total: int, sample_rate: int, seed: int
) -> tuple[tuple[CalibrationClip, ...], int]:
    """Compose clips of at most `n_total` samples together; also return how many rows were not used."""
    added = [*_alter(order, sample_rate, seed), *_add_silence_and_noise()]
    n_speech = n_total - sum(round(clip.duration_s * sample_rate) for clip in added)
    max_joined = round(JOINED_MAX_S * sample_rate)
    usual_joined = (JOINED_MIN_S + JOINED_MAX_S) / 2 * sample_rate
    n_available = min(n_total, sum(row.n_samples for row in order))
    n_joined = max(1, round(JOINED_SHARE * n_available / usual_joined))
    single, left = _fill(order, n_speech - n_joined * max_joined)
    n_speech -= sum(row.n_samples for row in single)
    joined: list[CalibrationClip] = []
    for number in range(1, n_joined + 1):
        if joined and not left:
            break
        parts, left = _draw_joined(left, order, sample_rate)
        clip = _join(parts, f"joined {number}", sample_rate, seed)
        joined.append(clip)
        n_speech -= round(clip.duration_s * sample_rate)
    more, left = _fill(left, n_speech)  # joined clips are seldom 30 s, so this uses what they left
    names: Counter[str] = Counter()
    speech: list[CalibrationClip] = []
    for row in [*single, *more]:
        name = f"{row.source}/{row.utterance.id}"
        names[name] += 1
        name += f" #{names[name]}" if names[name] > 1 else ""
        speech.append(_speech_clip(row, name))
    return (*speech, *joined, *added), len(left)


def _fill(order: Sequence[SpeechRow], n_samples: int) -> tuple[list[SpeechRow], list[SpeechRow]]:
    """Take the rows that fit, in order; also return those that are left."""
    taken: list[SpeechRow] = []
    left: list[SpeechRow] = []
    for row in order:
        if row.n_samples <= n_samples:
            taken.append(row)
            n_samples -= row.n_samples
        else:
            left.append(row)
    return taken, left


def _draw_joined(
    left: Sequence[SpeechRow], order: Sequence[SpeechRow], sample_rate: int
) -> tuple[list[tuple[SpeechRow, int]], list[SpeechRow]]:
    """Draw rows for one joined clip with the samples to use of each; also return what is left of `left`.

    If a small corpus has no rows left, some are used a second time, because long inputs matter more.
    """
    gap = round(JOINED_GAP_S * sample_rate)
    min_samples, max_samples = round(JOINED_MIN_S * sample_rate), round(JOINED_MAX_S * sample_rate)
    left = list(left)
    parts: list[tuple[SpeechRow, int]] = []
    n_samples = -gap
    while n_samples < min_samples:
        queue = left or [row for row in order if row not in (used for used, _ in parts)] or list(order)
        room = max_samples - n_samples - gap
        row = next((row for row in queue[:_LOOK_AHEAD] if row.n_samples <= room), queue[0])
        if left:
            left.remove(row)
        parts.append((row, min(row.n_samples, room)))
        n_samples += gap + parts[-1][1]
    return parts, left


def _speech_clip(row: SpeechRow, name: str) -> CalibrationClip:
    return CalibrationClip(
        name=name,
        kind="speech",
        stratum=row.stratum,
        duration_s=row.duration_s,
        rms_dbfs=row.rms_dbfs,
        text=row.utterance.text.strip() or None if row.is_whole else None,
        parts=(_make_part(row, row.n_samples),),
    )


def _make_part(row: SpeechRow, n_samples: int) -> ClipPart:
    path = row.utterance.audio_path
    return ClipPart(path=path, sha256=hash_file(path), n_samples=n_samples)


def _join(parts: Sequence[tuple[SpeechRow, int]], name: str, sample_rate: int, seed: int) -> CalibrationClip:
    is_whole = all(row.is_whole and row.n_samples == n_samples for row, n_samples in parts)
    text = " ".join(row.utterance.text.strip() for row, _ in parts)
    n_gaps = (len(parts) - 1) * round(JOINED_GAP_S * sample_rate)
    clip = CalibrationClip(
        name=name,
        kind="joined",
        stratum="joined",
        duration_s=(sum(n_samples for _, n_samples in parts) + n_gaps) / sample_rate,
        rms_dbfs=0.0,
        text=text if is_whole else None,
        parts=tuple(_make_part(row, n_samples) for row, n_samples in parts),
    )
    return _with_level(clip, sample_rate, seed)


def _alter(order: Sequence[SpeechRow], sample_rate: int, seed: int) -> list[CalibrationClip]:
    """Imitate recordings of a microphone whose gain is far too low, or far too high."""
    audible = [row for row in order if row.rms_dbfs > QUIETEST_ALTERED_DBFS]
    clips: list[CalibrationClip] = []
    for row, (name, rms_dbfs) in zip(audible, _ALTERED, strict=False):
        n_samples = min(row.n_samples, round(_ALTERED_S * sample_rate))
        is_whole = row.is_whole and n_samples == row.n_samples
        clip = CalibrationClip(
            name=f"{name} speech",
            kind="speech",
            stratum=name,
            duration_s=n_samples / sample_rate,
            rms_dbfs=0.0,
            text=row.utterance.text.strip() or None if is_whole else None,
            parts=(_make_part(row, n_samples),),
            gain_db=round(rms_dbfs - row.rms_dbfs, 1),
        )
        clips.append(_with_level(clip, sample_rate, seed))
    return clips


def _with_level(clip: CalibrationClip, sample_rate: int, seed: int) -> CalibrationClip:
    return dataclasses.replace(clip, rms_dbfs=measure_rms_dbfs(make_waveform(clip, sample_rate, seed)))


def _add_silence_and_noise() -> list[CalibrationClip]:
    return [
        CalibrationClip(
            name=name, kind=kind, stratum=name, duration_s=duration_s, rms_dbfs=rms_dbfs, color=color
        )
        for name, kind, rms_dbfs, color, duration_s in _ADDED
    ]
