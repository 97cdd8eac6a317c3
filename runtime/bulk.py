"""Many recordings at once: short ones share runs of the model, and runs share the cores.

A run of the model on one short clip leaves a core's vector units waiting, and threads inside an operator wait
for each other at every one of them; whole runs side by side, one thread each, do not. So clips of like length
are padded together to about 20 s, and workers take such batches in turn. Every recording gives the text that
it gives alone (padding is masked), results come in the order of the sources, and only what the workers hold
is in memory. What this file does not do: recognise (recognizer.py), find files or write results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edge_asr.audio import AudioFile
from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import Transcript

F32Array = npt.NDArray[np.float32]

BATCH_S = 20.0
"""Padded seconds in one run; with more the activations leave a CPU's cache and it is slower (docs/log.md)."""
LOOK_AHEAD = 64
"""Sources among which like lengths are sought, so that the first results need not wait for the last file."""

Source = str | Path | BinaryIO
#: Called from the workers with (index of a source, seconds of its sound taken in so far).
Heard = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """What became of one source.

    Attributes:
        index: its place among the sources.
        transcript: None where it failed.
        error: why it failed; None where it did not.
    """

    index: int
    transcript: Transcript | None = None
    error: EdgeAsrError | OSError | None = None


def transcribe_files(
    recognizer: Recognizer,
    sources: Sequence[Source],
    *,
    num_workers: int = 1,
    heard: Heard | None = None,
) -> Iterator[BulkResult]:
    """Transcribe sound files of any lengths; one that fails does not stop the others.

    Args:
        recognizer: for several workers its backend must be thread-safe, as onnxruntime's is; load it with
            `num_threads=1` (or cores / num_workers), or the workers get in each other's way.
        sources: paths, or binary file objects such as `sys.stdin.buffer`.
        num_workers: runs of the model at a time.
        heard: progress; called from the workers.

    Yields:
        One result a source, in their order, each as soon as those before it are there.

    Raises:
        ConfigError: fewer than one worker.
    """
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}; give 1 or more")
    report = heard or (lambda index, seconds: None)

    def work(group: Sequence[int]) -> list[BulkResult]:
        if len(group) == 1:
            return [_transcribe_one(recognizer, sources[group[0]], group[0], report)]
        return _transcribe_together(recognizer, sources, group, report)

    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="edge-asr-bulk")
    try:
        pending: list[Future[list[BulkResult]]] = []
        for begin in range(0, len(sources), LOOK_AHEAD):
            indexes = range(begin, min(begin + LOOK_AHEAD, len(sources)))
            ahead = [executor.submit(work, group) for group in _group(recognizer, sources, indexes)]
            yield from _in_order(pending)
            pending = ahead
        yield from _in_order(pending)
    finally:
        executor.shutdown(cancel_futures=True)


def _in_order(futures: Sequence[Future[list[BulkResult]]]) -> Iterator[BulkResult]:
    yield from sorted((r for future in futures for r in future.result()), key=lambda r: r.index)


def _group(recognizer: Recognizer, sources: Sequence[Source], indexes: Sequence[int]) -> list[list[int]]:
    """Indexes of what runs together, the longest first: the last workers then end at about the same time."""
    durations_s = {index: _duration_s(sources[index]) for index in indexes}
    groups: list[list[int]] = []
    for index in sorted(indexes, key=lambda i: -durations_s[i]):
        longest_s = durations_s[groups[-1][0]] if groups else 0.0
        if 0.0 < longest_s <= recognizer.window_s and (len(groups[-1]) + 1) * longest_s <= BATCH_S:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _duration_s(source: Source) -> float:
    """Length as the file's header says; infinite where it cannot be told, so that the file runs alone."""
    if not isinstance(source, (str, Path)):
        return float("inf")
    try:
        with AudioFile(source) as file:
            return file.duration_s or float("inf")
    except (EdgeAsrError, OSError):
        return float("inf")


def _transcribe_one(recognizer: Recognizer, source: Source, index: int, heard: Heard) -> BulkResult:
    try:
        transcript = recognizer.transcribe_file(source, progress=lambda seconds: heard(index, seconds))
    except (EdgeAsrError, OSError) as error:
        return BulkResult(index=index, error=error)
    return BulkResult(index=index, transcript=transcript)


def _transcribe_together(
    recognizer: Recognizer, sources: Sequence[Source], group: Sequence[int], heard: Heard
) -> list[BulkResult]:
    results: list[BulkResult] = []
    clips: dict[int, tuple[F32Array, int]] = {}
    for index in group:
        try:
            with AudioFile(sources[index]) as file:
                blocks = [np.zeros(0, np.float32), *file.blocks()]
                clips[index] = np.concatenate(blocks), file.sample_rate
        except (EdgeAsrError, OSError) as error:
            results.append(BulkResult(index=index, error=error))
    try:
        transcripts = recognizer.transcribe_batch(list(clips.values()))
    except EdgeAsrError as error:
        return [*results, *(BulkResult(index=index, error=error) for index in clips)]
    for index, transcript in zip(clips, transcripts, strict=True):
        heard(index, transcript.duration_s)
        results.append(BulkResult(index=index, transcript=transcript))
    return results
