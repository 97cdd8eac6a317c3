"""Utterances checked against everything that could stop training later, and their audio in memory.

Every clip is decoded once at the start (soundfile, soxr) into one int16 file per source, read
through a memory map: restarts, other runs and other processes share it. Bad rows are collected
with a reason. This file does not augment, batch or compute features.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ManifestError, require
from edge_asr.manifest import BadRow, Manifest, Reason, Utterance, read_manifest
from edge_asr.metrics import normalize_text
from edge_asr.training.config import DataConfig, SourceConfig

Progress = Callable[[Sequence[Utterance], str], Iterable[Utterance]]
CACHE_VERSION = 1


class TextEncoder(Protocol):
    """What the corpus needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids; raises VocabularyError for text that cannot be spelled."""
        ...


@dataclass(frozen=True, slots=True)
class Clip:
    """One usable utterance. `n_samples` at the corpus sample rate; `weight` is its source's."""

    id: str
    source: str
    row: int
    text: str
    n_samples: int
    weight: float
    path: Path
    audio: npt.NDArray[np.int16] | None
    """[n_samples] view into the cache, or None: then `load` decodes the file."""

    def load(self, sample_rate: int) -> npt.NDArray[np.float32]:
        """f32 [n_samples], full scale 1.0."""
        audio = decode_audio(self.path, sample_rate) if self.audio is None else self.audio
        return audio.astype(np.float32) * np.float32(1 / 32768)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Usable clips of several sources, in order, and the rows that were not."""

    clips: tuple[Clip, ...]
    bad_rows: tuple[BadRow, ...]
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Seconds of all clips, each counted once."""
        return sum(clip.n_samples for clip in self.clips) / self.sample_rate

    def count_reasons(self) -> dict[str, int]:
        """Reason -> number of bad rows, most frequent first."""
        return dict(Counter(bad.reason for bad in self.bad_rows).most_common())


def load_corpus(
    sources: Sequence[SourceConfig],
    data: DataConfig,
    *,
    sample_rate: int,
    cache_dir: Path,
    progress: Progress | None = None,
) -> Corpus:
    """Read manifests, decode (or find cached) audio, and sort out the rows that cannot be used.

    Text checks that need a tokenizer are `check_targets`, because the tokenizer is trained on
    the texts that this function returns.

    Raises:
        ManifestError: a source cannot be read at all, or two sources share a name.
    """
    names = [source.name or Path(source.path).stem for source in sources]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ManifestError(f"two sources are named {repeated[0]!r}; give each its own name")
    clips: list[Clip] = []
    bad: list[BadRow] = []
    for source, name in zip(sources, names, strict=True):
        manifest = read_manifest(source.path, kind=source.kind, name=name)  # type: ignore[arg-type]
        bad += manifest.bad_rows
        rows, decoded = _decode_source(manifest, data, sample_rate, cache_dir, progress)
        for utterance, audio in zip(rows, decoded, strict=True):
            text = normalize_text(utterance.text, data.text_normalization).strip()
            problem = _find_problem(audio, text, data, sample_rate)
            if problem:
                bad.append(_bad(name, utterance, *problem))
                continue
            assert not isinstance(audio, str)
            clips.append(
                Clip(
                    id=utterance.id,
                    source=name,
                    row=utterance.row,
                    text=text,
                    n_samples=len(audio),
                    weight=source.weight,
                    path=utterance.audio_path,
                    audio=audio if data.cache_audio else None,
                )
            )
    return Corpus(tuple(clips), tuple(bad), sample_rate)


def check_targets(
    corpus: Corpus,
    tokenizer: TextEncoder,
    *,
    n_output_frames: Callable[[int], int],
    fastest_speed: float = 1.0,
) -> tuple[Corpus, list[npt.NDArray[np.int64]]]:
    """Encode every text; drop clips whose text has no tokens for it or too many for CTC.

    CTC needs one frame per token and one blank between equal neighbours (Graves et al. 2006).

    Args:
        corpus: from `load_corpus`.
        tokenizer: gives token ids.
        n_output_frames: encoder output frames of a clip of so many samples.
        fastest_speed: the largest speed factor that augmentation may apply.

    Returns:
        The corpus without those clips, and i64 [n_tokens] per remaining clip.
    """
    from edge_asr.errors import VocabularyError

    kept: list[Clip] = []
    targets: list[npt.NDArray[np.int64]] = []
    bad = list(corpus.bad_rows)
    for clip in corpus.clips:
        utterance = Utterance(id=clip.id, audio_path=clip.path, text=clip.text, row=clip.row)
        try:
            ids = np.asarray(tokenizer.encode(clip.text), dtype=np.int64)
        except VocabularyError as error:
            bad.append(_bad(clip.source, utterance, "characters outside the vocabulary", str(error)))
            continue
        n_needed = len(ids) + int(np.count_nonzero(ids[1:] == ids[:-1]))
        n_frames = n_output_frames(int(clip.n_samples / fastest_speed))
        if n_needed > n_frames:
            detail = f"{n_needed} frames needed, {n_frames} there at speed {fastest_speed:g}: {clip.text[:60]!r}"
            bad.append(_bad(clip.source, utterance, "text longer than CTC allows", detail))
            continue
        kept.append(clip)
        targets.append(ids)
    return Corpus(tuple(kept), tuple(bad), corpus.sample_rate), targets


def decode_audio(path: Path, sample_rate: int) -> npt.NDArray[np.int16]:
    """Decode a sound file to int16 mono [n_samples] at `sample_rate`; channels are averaged.

    Raises:
        Exception: whatever soundfile raises; the caller turns it into a bad row.
    """
    soundfile = require("soundfile", extra="train")
    waveform, rate = soundfile.read(str(path), dtype="int16", always_2d=True)
    mono = waveform[:, 0] if waveform.shape[1] == 1 else waveform.astype(np.float32).mean(axis=1)
    if rate != sample_rate:
        soxr = require("soxr", extra="train")
        mono = soxr.resample(mono.astype(np.float32), rate, sample_rate, quality="HQ")
    return np.ascontiguousarray(np.clip(np.rint(mono), -32768, 32767), dtype=np.int16)


def _find_problem(
    audio: npt.NDArray[np.int16] | str, text: str, data: DataConfig, sample_rate: int
) -> tuple[Reason, str] | None:
    if isinstance(audio, str):
        return ("missing audio file", audio) if audio.startswith("no file") else ("undecodable audio", audio)
    if not text:
        return "empty text", "nothing left after text normalization"
    duration_s = len(audio) / sample_rate
    if duration_s > data.max_clip_s:
        return "clip too long", f"{duration_s:.2f} s, max_clip_s is {data.max_clip_s:g}"
    if duration_s < data.min_clip_s:
        return "clip too short", f"{duration_s:.2f} s, min_clip_s is {data.min_clip_s:g}"
    return None


def _bad(source: str, utterance: Utterance, reason: Reason, detail: str) -> BadRow:
    return BadRow(source=source, row=utterance.row, id=utterance.id, reason=reason, detail=detail)


def _try_decode(utterance: Utterance, sample_rate: int) -> npt.NDArray[np.int16] | str:
    if not utterance.audio_path.is_file():
        return f"no file {utterance.audio_path}"
    try:
        return decode_audio(utterance.audio_path, sample_rate)
    except Exception as error:  # soundfile's errors share no base class narrower than this
        return f"{type(error).__name__}: {error}"


def _decode_source(
    manifest: Manifest, data: DataConfig, sample_rate: int, cache_dir: Path, progress: Progress | None
) -> tuple[Sequence[Utterance], list[npt.NDArray[np.int16] | str]]:
    rows = manifest.utterances
    key = _fingerprint(rows, sample_rate)
    index_path = cache_dir / f"{manifest.name}-{key}.json"
    audio_path = cache_dir / f"{manifest.name}-{key}.i16"
    if not (index_path.is_file() and audio_path.is_file()):
        _write_cache(manifest, data, sample_rate, index_path, audio_path, progress)
    lengths = json.loads(index_path.read_text(encoding="utf-8"))
    n_total = sum(length for length in lengths if isinstance(length, int))
    pool: npt.NDArray[np.int16] = (
        np.memmap(audio_path, dtype=np.int16, mode="r") if n_total else np.zeros(0, np.int16)
    )
    if len(pool) != n_total:
        raise ManifestError(f"{audio_path} is damaged; delete it and start again")
    decoded: list[npt.NDArray[np.int16] | str] = []
    start = 0
    for length in lengths:
        if isinstance(length, str):
            decoded.append(length)
            continue
        decoded.append(pool[start : start + length])
        start += length
    return rows, decoded


def _write_cache(
    manifest: Manifest,
    data: DataConfig,
    sample_rate: int,
    index_path: Path,
    audio_path: Path,
    progress: Progress | None,
) -> None:
    """Write the int16 pool, then the index of lengths (int) and failures (str): both atomic."""
    index_path.parent.mkdir(parents=True, exist_ok=True)
    lengths: list[int | str] = []
    partial = audio_path.with_suffix(f".{os.getpid()}.tmp")
    rows = progress(manifest.utterances, f"decoding {manifest.name}") if progress else manifest.utterances
    with ThreadPoolExecutor(data.n_decode_threads) as pool, partial.open("wb") as file:
        # Submitted in slices, so that a long corpus never waits in memory for the writer.
        for batch in _slices(rows, 256):
            for audio in pool.map(lambda row: _try_decode(row, sample_rate), batch):
                if isinstance(audio, str):
                    lengths.append(audio)
                    continue
                lengths.append(len(audio))
                file.write(audio.tobytes())
    os.replace(partial, audio_path)
    partial = index_path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(lengths), encoding="utf-8")
    os.replace(partial, index_path)


def _slices(rows: Iterable[Utterance], size: int) -> Iterable[list[Utterance]]:
    batch: list[Utterance] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


def _fingerprint(rows: Sequence[Utterance], sample_rate: int) -> str:
    """Changes when a row, a file's size or its modification time changes."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {sample_rate}".encode())
    for row in rows:
        try:
            stat = row.audio_path.stat()
            seen = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            seen = "missing"
        digest.update(f"{row.audio_path}\0{seen}\n".encode())
    return digest.hexdigest()[:16]
