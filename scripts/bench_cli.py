#!/usr/bin/env python3
"""Time how long `edge-asr`, and each of its commands, takes to answer --help.

By default in a fresh virtual environment with edge-asr installed without any extra; `--here`
measures the installation of this interpreter. The physics: Python itself takes most of it, so the
start of an empty program is measured beside. Medians, a table, and one JSON line last; the exit
code is 1 when a median misses the goal (0.3 s).

    python scripts/bench_cli.py            python scripts/bench_cli.py --here --repeats 5
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

from edge_asr.benchmark.statistics import summarize
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.benchmark.timing import lap_of_command, rounds, take_turns

GOAL_S = 0.3
WARM_UP = 2
STATISTICS = ("p50", "p90", "min", "max")
REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure, print a table and the JSON line; return the exit code."""
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
    """Time every command of the `edge-asr` in the folder `scripts`, and print; return the exit code."""
    script = scripts / "edge-asr"
    listing = subprocess.run([script, "--help"], check=True, capture_output=True, text=True).stdout
    names = re.findall(r"^  (\S+)", listing.partition("Commands:\n")[2], re.MULTILINE)
    calls: dict[str, list[str | Path]] = {"(empty python)": [scripts / "python", "-c", ""]}
    calls["edge-asr"] = [script, "--help"]
    calls.update({name: [script, name, "--help"] for name in names})
    runs = {name: partial(lap_of_command, call) for name, call in calls.items()}
    laps = take_turns(runs, rounds(repeats), warm_up=WARM_UP)
    times = {name: summarize([1e3 * run.wall_s for run in values]) for name, values in laps.items()}
    rows = tuple((name, *(f"{getattr(times[name], column):.1f}" for column in STATISTICS)) for name in times)
    title = f"--help, {where}, {repeats} runs each after {WARM_UP}; goal: {GOAL_S} s"
    print_table(Table(title=title, columns=("ms", *STATISTICS), rows=rows), make_console())
    medians = {name: round(summary.p50 / 1e3, 4) for name, summary in times.items()}
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
