"""Measures `edge-asr transcribe --ray local` with one worker and with two, and its driver with millions.

    python scripts/bench_ray.py DIR                   # sounds to transcribe; needs edge-asr[cpu,ray]
    python scripts/bench_ray.py --rows 10000000       # no sound: ledger, shards and index of so many inputs

The first takes the command's own time, from the moment that workers are asked for to the last row: loading
the model is in it, starting Ray is not. The order is 1, 2, 2, 1 workers, so that a drift of the machine hits
both. Seconds of sound for a second of the workers' processor time do not depend on what else the machine
does. One JSON line comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_asr.cluster.inputs import list_inputs
from edge_asr.cluster.ledger import Ledger
from edge_asr.cluster.store import INDEX_EVERY, Store
from edge_asr.printable import json_line


def measure_workers(source: str, orders: list[int]) -> dict[str, Any]:
    """Run the command with so many workers, one after the other."""
    runs: dict[int, list[dict[str, float]]] = {}
    for n_workers in orders:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "edge_asr",
                "transcribe",
                "--manifest",
                source,
                "-o",
                f"{folder}/out",
            ]
            command += ["--workers", str(n_workers), "--json", "--ray", "local"]
            began = time.monotonic()
            # Ray's workers give way to all else (nice 15), which on a busy machine is what would be measured.
            environment = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
            whole_s = time.monotonic() - began
        if done.returncode not in (0, 1):
            sys.exit(done.stderr)
        said = json.loads(done.stdout)
        run = {"rtfx": said["rtfx"], "s": said["seconds"], "whole_s": whole_s}
        run["audio_per_processor_s"] = said["audio_s"] / said["processor_s"]
        runs.setdefault(n_workers, []).append(run)
        print(f"{n_workers} workers: {json.dumps({key: round(value, 1) for key, value in run.items()})}")
    medians = {
        n: {key: statistics.median(run[key] for run in found) for key in ("rtfx", "audio_per_processor_s")}
        for n, found in sorted(runs.items())
    }
    return {"runs": runs, "medians": medians}


def timed(what: str, found: dict[str, float], work: Callable[[], Any]) -> Any:
    """Time a step, and note the memory of the process after it."""
    began = time.monotonic()
    result = work()
    found[f"{what}_s"] = round(time.monotonic() - began, 1)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {found[f'{what}_s']} s, at most {peak_mb:.0f} MB of memory so far")
    return result


def measure_rows(n_rows: int) -> dict[str, float]:
    """Time what the driver does for so many inputs, without workers: their rows are never written."""
    found: dict[str, float] = {"n_rows": n_rows}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "m.jsonl")
        with manifest.open("w") as file:
            for n in range(n_rows):
                row = {
                    "audio_filepath": f"clips/{n % 1000:03d}/clip-{n:08d}.flac",
                    "duration": 2 + n % 1500 / 100,
                }
                file.write(json.dumps(row) + "\n")
        ledger = Ledger()
        timed("read_manifest", found, lambda: ledger.add(list_inputs(str(manifest))))
        manifest.unlink()
        store = Store(f"{folder}/out", "jsonl")
        store.begin({})
        shards = Path(folder, "out", "shards")

        def write_shards() -> int:
            n_shards, unnoted = 0, []
            for shard in ledger.plan(1800.0):
                name = store.name_shard(n_shards)
                (shards / name).touch()
                unnoted.append((name, [one.id for one in shard.inputs]))
                if len(unnoted) == INDEX_EVERY:
                    store.note(unnoted)
                    unnoted = []
                n_shards += 1
            if unnoted:
                store.note(unnoted)
            return n_shards

        found["n_shards"] = timed("plan_and_index", found, write_shards)
        index = list(Path(folder, "out", "index").iterdir())
        found["index_mb"] = round(sum(path.stat().st_size for path in index) / 1e6, 1)
        found["index_files"] = len(index)

        def resume() -> int:
            for _, ids in store.finished():
                ledger.finish(ids)
            return ledger.count(done=False)[0]

        assert timed("resume", found, resume) == 0
        ledger.close()
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", help="manifest or folder of sounds")
    parser.add_argument("--order", default="1,2,2,1", help="numbers of workers, in the order of the runs")
    parser.add_argument("--rows", type=int, help="inputs of the simulation")
    options = parser.parse_args()
    if (options.source is None) == (options.rows is None):
        parser.error("give sounds, or --rows N")
    if options.rows is not None:
        document: dict[str, Any] = measure_rows(options.rows)
    else:
        document = measure_workers(options.source, [int(n) for n in options.order.split(",")])
    print(json_line(document))


if __name__ == "__main__":
    main()
