"""Utterances checked against everything that could stop training later, and their audio in memory.

Every clip is decoded once at the start (`edge_asr.audio`) into one int16 file per source, read
through a memory map: restarts, other runs and other processes share it. Bad rows are collected
with a reason.
What this file does not do: augment, batch, compute features.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.atomic import write_file, writing_file
from edge_asr.audio import AudioFile, read_audio
from edge_asr.errors import ManifestError, TrainingError, VocabularyError
from edge_asr.manifest import BadRow, Manifest, Reason, Utterance, read_manifest
from edge_asr.metrics import normalize_text
from edge_asr.training.config import DataConfig, SourceConfig

Progress = Callable[[Sequence[Utterance], str], Iterable[Utterance]]
CACHE_VERSION = 1
MAX_DECODED_S = 3600.0
"""Longer files are bad rows without being decoded: they would not fit into memory."""

_MISSING = "no file"
_HUGE = "over an hour"


class TextEncoder(Protocol):
    """The part of a tokenizer that the corpus needs."""

    def encode(self, text: str) -> list[int]:
        """Return token ids; raises VocabularyError for text that cannot be spelled."""
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
        """Return f32 [n_samples], full scale 1.0."""
        audio = decode_audio(self.path, sample_rate) if self.audio is None else self.audio
        waveform: npt.NDArray[np.float32] = audio.astype(np.float32) * np.float32(1 / 32768)
        return waveform


@dataclass(frozen=True, slots=True)
class Corpus:
    """Usable clips of several sources, in order, and the rows that are not usable."""

    clips: tuple[Clip, ...]
    bad_rows: tuple[BadRow, ...]
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Sum the seconds of all clips, each counted once."""
        return sum(clip.n_samples for clip in self.clips) / self.sample_rate

    def count_reasons(self) -> dict[str, int]:
        """Count the bad rows by reason, most frequent first."""
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
        lengths, samples = _decode_source(manifest, data, sample_rate, cache_dir, progress)
        end = 0
        for utterance, length in zip(manifest.utterances, lengths, strict=True):
            start, end = end, end + (0 if isinstance(length, str) else length)
            text = normalize_text(utterance.text, data.text_normalization).strip()
            problem = _find_problem(length, text, data, sample_rate)
            if problem:
                bad.append(_bad(name, utterance, *problem))
                continue
            clips.append(
                Clip(
                    id=utterance.id,
                    source=name,
                    row=utterance.row,
                    text=text,
                    n_samples=end - start,
                    weight=source.weight,
                    path=utterance.audio_path,
                    audio=None if samples is None else samples[start:end],
                )
            )
    return Corpus(tuple(clips), tuple(bad), sample_rate)


def load_recordings(
    path: str | Path, data: DataConfig, *, sample_rate: int, cache_dir: Path
) -> list[npt.NDArray[np.int16]]:
    """Load the sound of a JSON Lines manifest whose texts do not matter: int16 [S_i] for each row.

    Raises:
        ManifestError: the manifest cannot be read, or one of its rows cannot be used.
    """
    manifest = read_manifest(path, kind="jsonl")
    lengths, samples = _decode_source(manifest, data, sample_rate, cache_dir, None)
    problems = [f"row {bad.row}: {bad.detail}" for bad in manifest.bad_rows]
    problems += [length for length in lengths if isinstance(length, str)]
    if problems:
        raise ManifestError(f"{path} has {len(problems)} rows that cannot be used; the first: {problems[0]}")
    if samples is None:
        return [decode_audio(row.audio_path, sample_rate) for row in manifest.utterances]
    ends = np.cumsum([int(length) for length in lengths])
    return np.split(samples, ends[:-1])


def check_targets(
    corpus: Corpus,
    tokenizer: TextEncoder,
    *,
    n_output_frames: Callable[[int], int],
    fastest_speed: float = 1.0,
) -> tuple[Corpus, list[npt.NDArray[np.int64]]]:
    """Encode every text; drop clips whose text has no tokens for it or too many for CTC.

    CTC needs one frame per token and one blank between equal neighbors (Graves et al. 2006).

    Args:
        corpus: from `load_corpus`.
        tokenizer: gives token ids.
        n_output_frames: maps the samples of a clip to its encoder output frames.
        fastest_speed: the largest speed factor that augmentation may apply.

    Returns:
        The corpus without those clips, and i64 [n_tokens] per remaining clip.
    """
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
            detail = (
                f"{n_needed} frames needed, {n_frames} exist at speed {fastest_speed:g}: {clip.text[:60]!r}"
            )
            bad.append(_bad(clip.source, utterance, "text longer than CTC allows", detail))
            continue
        kept.append(clip)
        targets.append(ids)
    return Corpus(tuple(kept), tuple(bad), corpus.sample_rate), targets


def decode_audio(path: Path, sample_rate: int) -> npt.NDArray[np.int16]:
    """Decode a sound file to int16 mono [n_samples] at `sample_rate`, as the runtime would hear it.

    Raises:
        AudioError: the file is missing, undecodable, or not finite.
    """
    waveform = read_audio(path, sample_rate)
    samples: npt.NDArray[np.int16] = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    return samples


def _find_problem(
    length: int | str, text: str, data: DataConfig, sample_rate: int
) -> tuple[Reason, str] | None:
    if isinstance(length, str):
        reason: Reason = "undecodable audio"
        if length.startswith(_MISSING):
            reason = "missing audio file"
        elif length.startswith(_HUGE):
            reason = "clip too long"
        return reason, length
    if not text:
        return "empty text", "nothing left after text normalization"
    duration_s = length / sample_rate
    if duration_s > data.max_clip_s:
        return "clip too long", f"{duration_s:.2f} s, max_clip_s is {data.max_clip_s:g}"
    if duration_s < data.min_clip_s:
        return "clip too short", f"{duration_s:.2f} s, min_clip_s is {data.min_clip_s:g}"
    return None


def _bad(source: str, utterance: Utterance, reason: Reason, detail: str) -> BadRow:
    return BadRow(source=source, row=utterance.row, id=utterance.id, reason=reason, detail=detail)


def _try_decode(utterance: Utterance, sample_rate: int) -> npt.NDArray[np.int16] | str:
    """Return the samples, or what is wrong."""
    if not utterance.audio_path.is_file():
        return f"{_MISSING} {utterance.audio_path}"
    try:
        with AudioFile(utterance.audio_path) as file:
            duration_s = file.duration_s
        if duration_s is not None and duration_s > MAX_DECODED_S:
            return f"{_HUGE}: {duration_s:.0f} s"
        return decode_audio(utterance.audio_path, sample_rate)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"


def _decode_all(
    manifest: Manifest, data: DataConfig, sample_rate: int, progress: Progress | None
) -> Iterator[npt.NDArray[np.int16] | str]:
    rows = progress(manifest.utterances, f"decoding {manifest.name}") if progress else manifest.utterances
    with ThreadPoolExecutor(data.n_decode_threads) as pool:
        # Rows are submitted in slices, so that a long corpus never waits in memory for the writer.
        for batch in _slices(rows, 256):
            yield from pool.map(lambda row: _try_decode(row, sample_rate), batch)


def _decode_source(
    manifest: Manifest, data: DataConfig, sample_rate: int, cache_dir: Path, progress: Progress | None
) -> tuple[list[int | str], npt.NDArray[np.int16] | None]:
    """Return for each row its length or what is wrong, and all samples one after another, if cached."""
    if not data.cache_audio:
        decoded = _decode_all(manifest, data, sample_rate, progress)
        return [audio if isinstance(audio, str) else len(audio) for audio in decoded], None
    key = _fingerprint(manifest.utterances, sample_rate)
    index_path = cache_dir / f"{manifest.name}-{key}.json"
    audio_path = cache_dir / f"{manifest.name}-{key}.i16"
    if not (index_path.is_file() and audio_path.is_file()):
        _write_cache(_decode_all(manifest, data, sample_rate, progress), index_path, audio_path)
    lengths: list[int | str] = json.loads(index_path.read_text(encoding="utf-8"))
    n_total = sum(length for length in lengths if isinstance(length, int))
    if audio_path.stat().st_size != 2 * n_total or len(lengths) != len(manifest.utterances):
        raise ManifestError(f"the audio cache {audio_path} is damaged; delete it and start again")
    if n_total == 0:
        return lengths, np.zeros(0, np.int16)
    return lengths, np.memmap(audio_path, dtype=np.int16, mode="r")


def _write_cache(decoded: Iterable[npt.NDArray[np.int16] | str], index_path: Path, audio_path: Path) -> None:
    """Write the samples, then the index of lengths (int) and failures (str), both atomically."""
    lengths: list[int | str] = []
    try:
        with writing_file(audio_path) as file:
            for audio in decoded:
                lengths.append(audio if isinstance(audio, str) else len(audio))
                if not isinstance(audio, str):
                    file.write(audio.tobytes())
        write_file(index_path, json.dumps(lengths))
    except OSError as error:
        raise TrainingError(
            f"the audio cache {audio_path} cannot be written ({error.strerror}); free some room, or name "
            "another folder in data.cache_dir"
        ) from error


def _slices(rows: Iterable[Utterance], size: int) -> Iterable[list[Utterance]]:
    batch: list[Utterance] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


def _fingerprint(rows: Sequence[Utterance], sample_rate: int) -> str:
    """Hash the rows, sizes and modification times, so that any change is noticed."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {sample_rate}".encode())
    for row in rows:
        try:
            stat = row.audio_path.stat()
            seen = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            seen = "missing"
        digest.update(f"{row.audio_path}\0{seen}\n".encode())
    return digest.hexdigest()[:16]
