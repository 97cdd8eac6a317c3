#!/usr/bin/env python3
"""How long `edge-asr`, and each of its commands, takes to answer --help.

By default in a fresh virtual environment with edge-asr installed without any extra; `--here`
measures the installation of this interpreter. The physics: Python itself takes most of it, so the
start of an empty program is measured beside. Medians, quartiles, and one JSON line last; the exit
code is 1 when a median misses the goal (0.3 s).

    python scripts/bench_cli.py            python scripts/bench_cli.py --here --repeats 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

GOAL_S = 0.3
WARM_UP = 2
REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure, print a table and the JSON line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--here", action="store_true", help="measure the environment of this interpreter")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.here:
        return measure(Path(sysconfig.get_path("scripts")), arguments.repeats, "this environment")
    with tempfile.TemporaryDirectory(prefix="edge-asr-bench-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        scripts = Path(folder) / "bin"
        pip = [str(scripts / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, str(REPOSITORY)], check=True)
        return measure(scripts, arguments.repeats, "fresh environment, no extra")


def measure(scripts: Path, repeats: int, where: str) -> int:
    """Time every command of the `edge-asr` in the folder `scripts`; print; the exit code."""
    script = scripts / "edge-asr"
    listing = subprocess.run([script, "--help"], check=True, capture_output=True, text=True).stdout
    names = [line.split()[0] for line in listing.partition("Commands:\n")[2].splitlines() if line.strip()]
    calls: dict[str, list[str | Path]] = {"(empty python)": [scripts / "python", "-c", ""]}
    calls["edge-asr"] = [script, "--help"]
    calls.update({name: [script, name, "--help"] for name in names})
    times: dict[str, list[float]] = {name: [] for name in calls}
    # Round by round, so that a slow moment of the machine hits all alike.
    for repeat in range(WARM_UP + repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            if repeat >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    print(f"--help, {where}, {repeats} runs each after {WARM_UP}; goal: {GOAL_S} s")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        mark = "" if median < GOAL_S else "   misses the goal"
        print(f"{name:16} {median * 1000:7.1f} ms   quartiles {low * 1000:.1f} .. {high * 1000:.1f}{mark}")
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    worst = max(medians.values())
    result = {
        "bench": "cli_help",
        "where": where,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "goal_s": GOAL_S,
        "worst_median_s": worst,
        "median_s": medians,
    }
    print(json.dumps(result))
    return 0 if worst < GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
