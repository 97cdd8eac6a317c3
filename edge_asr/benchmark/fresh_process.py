"""Runs a bundle in fresh processes: cold starts, peak memory that nothing shares, reference texts.

Every process is a plain user of `Recognizer.load` and transcribes the same clips `n_runs` times. "Cold" is a
new process on a machine that has read the files before: disk caches are warm, nothing else is.
What this file does not do: the child's work (`fresh_child.py`).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import edge_asr
from edge_asr.benchmark.schema import COLD_STAGES, ColdStart, Memory, Times
from edge_asr.errors import BackendError, GateError
from edge_asr.runtime.decoding.choice import DecoderOptions

F32Array = npt.NDArray[np.float32]

_CHILD = "from edge_asr.benchmark.fresh_child import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshRun:
    """The answer of one process.

    Attributes:
        started_s: monotonic time at which it was started.
        at_s: monotonic times: Python up, imported, loaded, audio read, then each text.
        texts: the text of every clip, the same in all its runs.
        memory: its peaks.
    """

    started_s: float
    at_s: tuple[float, ...]
    texts: tuple[str, ...]
    memory: Memory

    @property
    def text_sha256(self) -> str:
        """Hash the texts."""
        return hash_texts(self.texts)

    def stages_s(self) -> dict[str, float]:
        """Return seconds by stage, in the order of `COLD_STAGES`; "second" only if there was a second run."""
        edges = (self.started_s, *self.at_s[:5])
        laps = [after - before for before, after in itertools.pairwise(edges)]
        values = dict(zip(COLD_STAGES[:5], laps, strict=True))
        values["to_first_text"] = self.at_s[4] - self.started_s
        if len(self.at_s) > 5:
            values["second"] = self.at_s[5] - self.at_s[4]
        return values


def hash_texts(texts: Sequence[str]) -> str:
    """Compute the SHA-256 of the texts of all clips of a run, one per line, as UTF-8."""
    return sha256("\n".join(texts).encode()).hexdigest()


def run_fresh(
    load: dict[str, Any],
    clips: Sequence[F32Array],
    sample_rate: int,
    folder: Path,
    *,
    n_runs: int = 2,
    decoding: DecoderOptions | None = None,
) -> FreshRun:
    """Start a process that recognizes `clips` (equal lengths) `n_runs` times; wait for it.

    Args:
        load: arguments of `Recognizer.load` but the decoder.
        clips: waveforms [S], of one length.
        sample_rate: Hz.
        folder: for the files that the process reads.
        n_runs: how many times.
        decoding: the decoder; None is greedy search.

    Raises:
        BackendError: the process failed; the message says what it said.
        GateError: it gave one text and then another.
    """
    np.save(folder / "clips.npy", np.stack(clips))
    request = {
        "load": load,
        "decoding": None if decoding is None or decoding.is_greedy else decoding.to_dict(),
        "clips": str(folder / "clips.npy"),
        "sample_rate": sample_rate,
        "n_runs": n_runs,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    # The same edge_asr as here, whatever the folder that the child begins in.
    paths = [str(Path(edge_asr.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-c", _CHILD, str(folder / "request.json")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        last = said[-1] if said else "it said nothing"
        raise BackendError(f"a fresh process ended with exit code {done.returncode}: {last}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise BackendError(f"in a fresh process: {answer['error']}")
    if any(texts != answer["texts"][0] for texts in answer["texts"]):
        raise GateError(
            "a fresh process gave one text and then another for the same audio; nothing is reported"
        )
    rss = answer["rss_bytes"]
    return FreshRun(
        started_s=started,
        at_s=tuple(answer["at_s"]),
        texts=tuple(answer["texts"][0]),
        memory=Memory(
            imported_rss_bytes=rss[0],
            loaded_rss_bytes=rss[1],
            peak_rss_bytes=rss[2],
            rss_reason=None if rss[2] is not None else "this system has no /proc/self/status",
            gpu_bytes=answer["gpu_bytes"],
            gpu_reason=answer["gpu_reason"],
        ),
    )


def cold_start(runs: Sequence[FreshRun], seconds: float, warm_ms: float | None) -> ColdStart:
    """Combine several fresh processes into one record."""
    laps = [run.stages_s() for run in runs]
    times = {stage: [lap[stage] for lap in laps if stage in lap] for stage in COLD_STAGES}
    stages = {stage: Times.of(values, sessions=[1] * len(values)) for stage, values in times.items()}
    return ColdStart(seconds=seconds, n_runs=len(runs), stages=stages, warm_ms=warm_ms)
