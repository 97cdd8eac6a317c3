"""Transcribes shards: the work of one process on some machine of a cluster.

A worker loads the model once. The sounds of a shard are fetched ahead, a few at a time, and transcribed as
`edge_asr.runtime.bulk` does, clips of similar length together. Each input gives a row, whatever happens.
What this file does not do: know what a cluster is (ray_pool.py).
"""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_asr.bundle.folder import resolve_bundle_path, sha256_of
from edge_asr.bundle.names import MANIFEST_NAME
from edge_asr.cluster.inputs import Input, file_system, is_local
from edge_asr.cluster.ledger import Shard
from edge_asr.cluster.store import Row, Store
from edge_asr.errors import BundleError, EdgeAsrError
from edge_asr.runtime.bulk import BATCH_S, GPU_BATCH_S, GPU_WORKERS, LOOK_AHEAD, BulkResult, transcribe_files
from edge_asr.runtime.digits import write_transcript_digits
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.tested import load_tested

FETCHES = 8
"""Sounds that are fetched at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What every worker is told.

    Attributes:
        recognizer: arguments of `Recognizer.load`, without threads.
        bundle_sha256: of bundle.json, so that no machine has another model.
        store: where results go.
        threads: runs of the model at the same time, on a CPU.
        digits: write numbers with digits.
        self_test: load the model as `load_tested` does.
    """

    recognizer: dict[str, Any]
    bundle_sha256: str
    store: Store
    threads: int = 1
    digits: bool = False
    self_test: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What became of a shard.

    Attributes:
        name: its file in `pending`.
        n_rows, n_errors: rows, and those with an error.
        audio_s: seconds of sound heard.
        processor_s: processor time of the worker.
    """

    name: str
    n_rows: int
    n_errors: int
    audio_s: float
    processor_s: float = 0.0


def bundle_sha256(path_or_name: str | Path) -> str:
    """Hash the manifest of a bundle, which holds the hashes of its files.

    Raises:
        BundleError: there is no bundle here.
    """
    manifest = resolve_bundle_path(path_or_name) / MANIFEST_NAME
    if not manifest.is_file():
        raise BundleError(
            f"{manifest.parent} has no {MANIFEST_NAME}; give a folder that `edge-asr export` wrote"
        )
    return sha256_of(manifest)


class ShardWorker:
    """A loaded model that transcribes shards.

    Raises:
        BundleError: this machine has another bundle, or none.
        EdgeAsrError: as `Recognizer.load`.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        name = settings.recognizer["path_or_name"]
        if bundle_sha256(name) != settings.bundle_sha256:
            raise BundleError(
                f"{name} on {platform.node()} is not the bundle that the run began with; give every machine "
                "the same one"
            )
        load = load_tested if settings.self_test else Recognizer.load
        self._recognizer = load(**settings.recognizer, num_threads=1)
        self._n_workers, self._batch_s = settings.threads, BATCH_S
        if self._recognizer.backend.name != "cpu":
            self._n_workers, self._batch_s = GPU_WORKERS, GPU_BATCH_S

    def ready(self) -> str:
        """Return what runs the model; it answers once the model is loaded."""
        return f"{self._recognizer.execution} on {platform.node()}"

    def run(self, shard: Shard, name: str) -> ShardResult:
        """Transcribe a shard and write its rows to `pending`.

        Raises:
            EdgeAsrError, OSError: the rows cannot be written.
        """
        began_s = time.process_time()
        rows = list(self._rows(shard.inputs))
        self._settings.store.write(name, rows)
        return ShardResult(
            name=name,
            n_rows=len(rows),
            n_errors=sum(row["error"] is not None for row in rows),
            audio_s=sum(row["duration"] or 0.0 for row in rows),
            processor_s=time.process_time() - began_s,
        )

    def _rows(self, inputs: Sequence[Input]) -> Iterator[Row]:
        with _Warnings() as warnings, _Fetcher() as fetcher:
            for group, paths in fetcher.groups(inputs):
                good = [(one, path) for one, path in zip(group, paths, strict=True) if isinstance(path, Path)]
                for one, path in zip(group, paths, strict=True):
                    if not isinstance(path, Path):
                        yield _row(one, error=path)
                for result in transcribe_files(
                    self._recognizer,
                    [path for _, path in good],
                    num_workers=self._n_workers,
                    batch_s=self._batch_s,
                ):
                    one, path = good[result.index]
                    yield self._row_of(one, path, result, warnings.take(str(path)))

    def _row_of(self, one: Input, path: Path, result: BulkResult, warning: str | None) -> Row:
        transcript, error = result.transcript, warning
        if transcript is None:
            error = " ".join(str(result.error).split())
        elif self._settings.digits:
            transcript = write_transcript_digits(transcript)
        return _row(one, transcript, None if error is None else error.replace(str(path), one.place))


def _row(one: Input, transcript: Any = None, error: str | None = None) -> Row:
    row: Row = {"id": one.id, "audio_filepath": one.place, "text": None, "words": None}
    row |= {"confidence": None, "duration": None, "error": error}
    if transcript is not None:
        words = transcript.words
        row |= {"text": transcript.text, "words": [asdict(word) for word in words]}
        row["duration"] = transcript.duration_s
        row["confidence"] = sum(word.confidence for word in words) / len(words) if words else None
    return row


class _Fetcher:
    """Brings sounds to this machine, a group ahead of what is transcribed; local ones stay where they are."""

    def __enter__(self) -> _Fetcher:
        self._folder = Path(tempfile.mkdtemp(prefix="edge-asr-"))
        self._threads = ThreadPoolExecutor(FETCHES, thread_name_prefix="edge-asr-fetch")
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def groups(self, inputs: Sequence[Input]) -> Iterator[tuple[Sequence[Input], list[Path | str]]]:
        """Yield inputs in turn, each with the path of its sound, or why there is none."""
        cuts = [inputs[start : start + LOOK_AHEAD] for start in range(0, len(inputs), LOOK_AHEAD)]
        ahead: list[list[Future[Path | str]]] = []
        for number, group in enumerate(cuts):
            while len(ahead) < min(number + 2, len(cuts)):
                names = [f"{len(ahead)}-{index}" for index in range(len(cuts[len(ahead)]))]
                ahead.append(list(map(self._submit, cuts[len(ahead)], names)))
            yield group, [future.result() for future in ahead[number]]
            for future in ahead[number]:
                path = future.result()
                if isinstance(path, Path) and path.parent == self._folder:
                    path.unlink(missing_ok=True)

    def _submit(self, one: Input, name: str) -> Future[Path | str]:
        return self._threads.submit(self._fetch, one, name)

    def _fetch(self, one: Input, name: str) -> Path | str:
        if one.problem:
            return one.problem
        try:
            fs, path = file_system(one.place)
            if is_local(fs):
                return Path(path)
            target = self._folder / name
            fs.get_file(path, str(target))
        except (EdgeAsrError, OSError) as error:
            reason = str(error) or type(error).__name__
            return reason if one.place in reason else f"{one.place} cannot be fetched: {reason}"
        return target


class _Warnings(logging.Handler):
    """Keeps what edge_asr.audio says of files that are damaged and still have a transcript."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._found.append(record.getMessage())

    def take(self, path: str) -> str | None:
        """Return what was said of a file; None if nothing was."""
        return next((text for text in self._found if text.startswith(f"{path} ")), None)

    def __enter__(self) -> _Warnings:
        logging.getLogger("edge_asr.audio").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("edge_asr.audio").removeHandler(self)
