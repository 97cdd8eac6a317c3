"""Times whole clips by stage, in many runs, each proven.

Runs of what is to be compared (precisions, batch sizes of one length) take turns (`timing.py`); each goes on
until it has both enough runs and enough time. All of this is repeated in sessions that lie apart, since a
machine is not the same machine a minute later (`compare.py`).

Proof of work: the text of every run, warm-up included, is hashed outside the clock and must be the text that
a plain recognizer gave for the same audio, in the same mode, in a process of its own; and the model must have
been given every frame. A run that fails this is a `GateError` and there is no number at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_asr.benchmark.fresh_process import hash_texts
from edge_asr.benchmark.schema import Times
from edge_asr.benchmark.stages import RunTimes, StagedRecognizer
from edge_asr.benchmark.timing import take_turns
from edge_asr.errors import GateError
from edge_asr.runtime.backends import Backend
from edge_asr.runtime.engine.backend import TensorRTBackend

F32Array = npt.NDArray[np.float32]

MIN_RUNS = 10
ON_CPU = "onnxruntime on the CPU reads and writes the host's memory: there is no copy"
ON_CUDA = "onnxruntime copies inside its run; both copies are in encode"
UNKNOWN = "this backend does not time its copies"


@dataclass(slots=True, kw_only=True)
class Task:
    """One length and batch size on one recognizer, and what was measured of it.

    Attributes:
        name: for messages.
        recognizer: watched; its precision and backend.
        clips: waveforms f32 [S] of one length.
        sample_rate: Hz.
        text_sha256: hash of the reference text.
        runs: measured.
        sessions: how many of them in each call of `measure`.
    """

    name: str
    recognizer: StagedRecognizer
    clips: Sequence[F32Array]
    sample_rate: int
    text_sha256: str
    runs: list[RunTimes] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)

    @property
    def audio_s(self) -> float:
        """Return the seconds of audio in a run."""
        return sum(len(clip) for clip in self.clips) / self.sample_rate

    @property
    def mode(self) -> str:
        """Say which method of the recognizer runs."""
        return "transcribe" if len(self.clips) == 1 else "transcribe_batch"

    def run(self) -> RunTimes:
        """Do one proven run.

        Raises:
            GateError: the model was not run on all of the audio, or the text is another.
        """
        transcripts, times = self.recognizer.run(self.clips, self.sample_rate)
        config = self.recognizer.features
        n_frames = sum(rows * frames for rows, frames in times.passes)
        # Two frames less for each clip: front ends differ by that much.
        expected = self.audio_s * config.sample_rate / config.hop_length - 4 * len(self.clips)
        if n_frames < expected:
            raise GateError(
                f"{self.name}: the model was given {n_frames} feature frames of about {expected:.0f}; the "
                "run did not happen as asked, so no number is reported"
            )
        texts = [transcript.text for transcript in transcripts]
        if hash_texts(texts) != self.text_sha256:
            raise GateError(
                f"{self.name}: a measured run gave {' | '.join(texts)!r}, which is not the text that "
                f"{self.mode} gives for this audio in a process of its own; no number is reported"
            )
        return times


def measure(
    tasks: Sequence[Task],
    *,
    warmup: int,
    min_duration_s: float,
    min_runs: int = MIN_RUNS,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Do one session: add to the `runs` of tasks that take turns.

    Args:
        tasks: that are to be compared.
        warmup: unmeasured runs of each.
        min_duration_s, min_runs: both must be reached by each in this session.
        progress: called with the share that is done.

    Raises:
        GateError: a run that did not do its work.
    """
    numbered = {str(index): task for index, task in enumerate(tasks)}
    for task in tasks:
        _record_shapes(task)

    def share(runs: Sequence[RunTimes]) -> float:
        by_time = sum(run.total_s for run in runs) / min_duration_s if min_duration_s else 1.0
        return min(1.0, len(runs) / min_runs, by_time)

    def show(samples: Mapping[str, list[RunTimes]]) -> None:
        if progress is not None:
            progress(sum(map(share, samples.values())) / len(samples))

    session = take_turns(
        {name: task.run for name, task in numbered.items()},
        lambda samples: [name for name, runs in samples.items() if share(runs) < 1.0],
        warm_up=warmup,
        progress=show,
    )
    for name, task in numbered.items():
        task.runs += session[name]
        task.sessions.append(len(session[name]))


def _record_shapes(task: Task) -> None:
    """Let an engine record the shapes of a task, as a program that listens does before the first word."""
    backend = task.recognizer.backend
    if isinstance(backend, TensorRTBackend):
        for n_rows, n_frames in task.run().passes:
            backend.warm_up([n_frames], n_rows)


def repeat(task: Task, seconds: float) -> int:
    """Run one task without a pause for a given time, proven, to measure power; return the number of runs.

    Raises:
        GateError: a run that did not do its work.
    """
    began, n_runs = time.monotonic(), 0
    while time.monotonic() - began < seconds or n_runs == 0:
        task.run()
        n_runs += 1
    return n_runs


def time_copies(backend: Backend, passes: Sequence[tuple[int, int]], n_runs: int) -> tuple[Times, Times]:
    """Time the copies between host and device in one run, to the device and back.

    A TensorRT engine's copies are queued, or recorded, together with its kernels and waited for once, so they
    cannot be cut out of a run without changing it. They are timed by themselves instead, right after the
    runs: the same buffers, the same bytes, waited for. They remain a part of "encode", not to be added to it.

    Args:
        backend: that made the passes.
        passes: rows and feature frames of each pass of the model in a run.
        n_runs: how many samples.

    Raises:
        BackendError: CUDA failed.
    """
    if not isinstance(backend, TensorRTBackend):
        reason = {"cpu": ON_CPU, "cuda": ON_CUDA}.get(backend.name, UNKNOWN)
        return Times.missing(reason), Times.missing(reason)
    there: list[float] = []
    back: list[float] = []
    for _ in range(n_runs):
        laps = [backend.time_copies(n_rows, n_frames) for n_rows, n_frames in passes]
        there.append(sum(lap[0] for lap in laps))
        back.append(sum(lap[1] for lap in laps))
    return Times.of(there), Times.of(back)
