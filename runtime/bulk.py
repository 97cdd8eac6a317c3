"""Many recordings at once: short ones share runs of the model, and runs share the cores.

A run of the model on one short clip leaves the vector units of a core idle, and threads inside an operator
wait for each other at every operator; whole runs side by side, one thread each, do not. So clips of similar
length are padded together to about 20 s, and workers take such batches in turn. Every recording gives the
text that it gives alone (padding is masked), results come in the order of the sources, and only what the
workers hold is in memory. A file is opened once, for its length and later for its samples.
What this file does not do: recognize (recognizer.py), find files, write results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edge_asr.audio import AudioFile
from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr.runtime.acoustic_model import group_by_length
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import Transcript

F32Array = npt.NDArray[np.float32]

BATCH_S = 20.0
"""Padded seconds in one run; with more, activations leave the CPU's cache and it is slower (docs/log.md)."""
GPU_BATCH_S = 120.0
"""The same on a GPU, which a short batch does not fill; an engine runs as many rows at once as it takes."""
GPU_WORKERS = 3
"""Batches under way on a GPU: it computes one, while others are read, made features of, or decoded."""
LOOK_AHEAD = 64
"""Sources searched for similar lengths, so that the first results need not wait for the last file."""

Source = str | Path | BinaryIO
#: Called with (index of a source, seconds of its sound read so far, its length in s, 0 if unknown): once when
#: it is opened, by the thread that takes the results, then as it is read, by the workers.
Heard = Callable[[int, float, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """The result of one source.

    Attributes:
        index: its place among the sources.
        transcript: the transcript; None if it failed.
        error: why it failed; None if it did not.
    """

    index: int
    transcript: Transcript | None = None
    error: EdgeAsrError | OSError | None = None


def transcribe_files(
    recognizer: Recognizer,
    sources: Sequence[Source],
    *,
    num_workers: int = 1,
    batch_s: float = BATCH_S,
    heard: Heard | None = None,
) -> Iterator[BulkResult]:
    """Transcribe sound files of any lengths; one that fails does not stop the others.

    Args:
        recognizer: for several workers its backend must be thread-safe, as onnxruntime's is. Load it with
            `num_threads=1` (or cores / num_workers), or the workers compete for cores.
        sources: paths, or binary file objects such as `sys.stdin.buffer`.
        num_workers: runs of the model at the same time.
        batch_s: padded seconds in one run.
        heard: called with the progress, from the workers.

    Yields:
        One result per source, in their order, each as soon as those before it are done.

    Raises:
        ConfigError: num_workers is below 1.
    """
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}; give 1 or more")
    report = heard or (lambda index, seconds, length_s: None)
    opened: dict[int, _Opened] = {}

    def work(group: Sequence[int]) -> list[BulkResult]:
        files = [opened.pop(index) for index in group]
        if len(files) == 1:
            return [_transcribe_one(recognizer, files[0], report)]
        return _transcribe_together(recognizer, files, report)

    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="edge-asr-bulk")
    try:
        pending: list[Future[list[BulkResult]]] = []
        for begin in range(0, len(sources), LOOK_AHEAD):
            ahead = range(begin, min(begin + LOOK_AHEAD, len(sources)))
            for index in ahead:
                opened[index] = _Opened(index, sources[index])
                report(index, 0.0, opened[index].length_s)
            # The longest come first, so that the last workers end about together; a length of 0 is unknown.
            lengths_s = [opened[index].length_s or math.inf for index in ahead]
            groups = group_by_length(lengths_s, recognizer.window_s, batch_s)
            submitted = [executor.submit(work, [ahead[i] for i in group]) for group in groups]
            yield from _in_order(pending)
            pending = submitted
        yield from _in_order(pending)
    finally:
        executor.shutdown(cancel_futures=True)
        for file in opened.values():  # for workers that never began
            file.close()


class _Opened:
    """A source that was opened, or why it could not be; streams are opened by the worker that reads them.

    Attributes:
        index: its place among the sources.
        length_s: length according to its header; 0 if unknown.
    """

    def __init__(self, index: int, source: Source) -> None:
        self.index = index
        self.length_s = 0.0
        self._source = source
        self._file: AudioFile | None = None
        self._error: EdgeAsrError | OSError | None = None
        if isinstance(source, (str, Path)):
            try:
                self._file = AudioFile(source)
                self.length_s = self._file.duration_s
            except (EdgeAsrError, OSError) as error:
                self._error = error

    def file(self) -> AudioFile:
        """Return the open file.

        Raises:
            AudioError, OSError: it cannot be opened.
        """
        if self._error is not None:
            raise self._error
        if self._file is None:
            self._file = AudioFile(self._source)
        return self._file

    def close(self) -> None:
        """Close the file if it is open."""
        if self._file is not None:
            self._file.close()


def _in_order(futures: Sequence[Future[list[BulkResult]]]) -> Iterator[BulkResult]:
    yield from sorted((r for future in futures for r in future.result()), key=lambda r: r.index)


def _transcribe_one(recognizer: Recognizer, opened: _Opened, heard: Heard) -> BulkResult:
    index, length_s = opened.index, opened.length_s
    try:
        transcript = recognizer.transcribe_file(
            opened.file(), progress=lambda seconds: heard(index, seconds, length_s)
        )
    except (EdgeAsrError, OSError) as error:
        return BulkResult(index=index, error=error)
    finally:
        opened.close()
    return BulkResult(index=index, transcript=transcript)


def _transcribe_together(recognizer: Recognizer, group: Sequence[_Opened], heard: Heard) -> list[BulkResult]:
    results: list[BulkResult] = []
    clips: dict[int, tuple[F32Array, int]] = {}
    for opened in group:
        try:
            file = opened.file()
            blocks = [np.zeros(0, np.float32), *file.blocks()]
            clips[opened.index] = np.concatenate(blocks), file.sample_rate
        except (EdgeAsrError, OSError) as error:
            results.append(BulkResult(index=opened.index, error=error))
        finally:
            opened.close()
    # A header can claim less than the file holds.
    long = [index for index, (samples, rate) in clips.items() if len(samples) > recognizer.window_s * rate]
    short = [index for index in clips if index not in long]
    try:
        transcripts = recognizer.transcribe_together([clips[index] for index in short])
        transcripts += [recognizer.transcribe(*clips[index]) for index in long]
    except EdgeAsrError as error:
        return [*results, *(BulkResult(index=index, error=error) for index in clips)]
    for index, transcript in zip([*short, *long], transcripts, strict=True):
        heard(index, transcript.duration_s, transcript.duration_s)
        results.append(BulkResult(index=index, transcript=transcript))
    return results
