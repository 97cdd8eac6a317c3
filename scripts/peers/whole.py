"""Measures whole programs: start to text of a command, memory, and many short files."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from edge_asr.audio import read_audio
from edge_asr.benchmark.timing import lap, lap_of_command, rounds, take_turns
from edge_asr.runtime.bulk import transcribe_files
from edge_asr.runtime.recognizer import Recognizer

F32Array = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000
N_FILES = 200
COLD_STARTS = 11

# VmHWM: the high-water mark of the process itself, which a parent's memory does not touch.
_PEAK = (
    "import sys\n"
    "from edge_asr.runtime.recognizer import Recognizer\n"
    "r = Recognizer.load(sys.argv[1], precision=sys.argv[2], backend='cpu', num_threads=1)\n"
    "r.transcribe_file(sys.argv[3])\n"
    "print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])\n"
)


def time_cold_starts(bundle: Path, clip: Path) -> dict[str, Any]:
    """Seconds from starting a command to its end, in turns: ours and onnx-asr's, on the same folder.

    Ours as users type it, which runs INT8 where that is faster, and in float32, which onnx-asr's runs.
    """
    scripts = Path(sys.executable).parent
    commands: dict[str, Sequence[str | Path]] = {
        "edge-asr": [scripts / "edge-asr", "transcribe", "-m", bundle, clip],
        "edge-asr fp32": [scripts / "edge-asr", "transcribe", "-m", bundle, "--precision", "fp32", clip],
        "onnx-asr": [scripts / "onnx-asr", "nemo-conformer-ctc", clip, "-p", bundle],
    }
    # Or an editable install of ours would be compiled at every start, which no user's is.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = {name: partial(lap_of_command, command, environment) for name, command in commands.items()}
    laps = take_turns(runs, rounds(COLD_STARTS), warm_up=1)  # the first reads the files from the disk
    medians = {name: statistics.median(run.wall_s for run in values) for name, values in laps.items()}
    return {
        "what": f"{soundfile.info(clip).duration:g} s clip, start to end of the command, warm disk",
        "s": {name: round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["edge-asr"] / medians["onnx-asr"], 3),
        "ratio_fp32": round(medians["edge-asr fp32"] / medians["onnx-asr"], 3),
    }


def measure_peak_mb(bundle: Path, precision: str, clip: Path) -> float:
    """Peak memory of a process that loads the bundle and transcribes one file, one thread, in MB."""
    command = [sys.executable, "-c", _PEAK, str(bundle), precision, str(clip)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return round(int(done.stdout) * 1024 / 1e6, 1)


def time_many_files(bundle: Path, speech: F32Array, folder: Path, repeats: int = 3) -> dict[str, Any]:
    """Files a second of 200 cuts of 1 to 5 s: one by one on one and two threads, and as `transcribe DIR`."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(N_FILES):
        n_samples = round(generator.uniform(1.0, 5.0) * SAMPLE_RATE)
        begin = int(generator.integers(0, len(speech) - n_samples))
        paths.append(folder / f"{number:03d}.wav")
        soundfile.write(paths[-1], speech[begin : begin + n_samples], SAMPLE_RATE)
    texts: dict[str, list[str]] = {}

    def alone(name: str, recognizer: Recognizer) -> None:
        texts[name] = [recognizer.transcribe_file(path).text for path in paths]

    def together(name: str, recognizer: Recognizer) -> None:
        results = transcribe_files(recognizer, paths, num_workers=2)
        texts[name] = [r.transcript.text for r in results if r.transcript is not None]

    with (
        Recognizer.load(bundle, backend="cpu", num_threads=1) as one,
        Recognizer.load(bundle, backend="cpu", num_threads=2) as two,
    ):
        ways = {"one thread": (alone, one), "two threads": (alone, two), "in bulk": (together, one)}
        runs = {name: partial(lap, partial(way, name, loaded)) for name, (way, loaded) in ways.items()}
        laps = take_turns(runs, rounds(repeats))
    seconds = {name: [run.wall_s for run in values] for name, values in laps.items()}
    rates = {name: N_FILES / statistics.median(values) for name, values in seconds.items()}
    best = max(rates["one thread"], rates["two threads"])
    return {
        "what": f"{N_FILES} files of 1 to 5 s, precision {one.backend.precision}, two cores",
        "files_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "speed_up": round(rates["in bulk"] / best, 3),
        "same_texts": texts["in bulk"] == texts["one thread"],
    }


def load_speech(paths: Sequence[Path]) -> F32Array:
    """Recordings end to end, [S] float32 at 16 kHz."""
    return np.concatenate([read_audio(path, SAMPLE_RATE) for path in paths])
