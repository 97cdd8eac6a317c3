#!/usr/bin/env python3
"""What linear attention costs and how far it is from softmax, as clips (T) and heads (d) grow, in one plot.

The physics: softmax compares each of T frames with each other, T^2 d products. With K terms of the Taylor
series (`edge_asr.model.attention.linear`) each frame becomes d^(K-1) numbers, T d^K products. So there is a
length from which linear attention is faster, near d^(K-1) frames, and it moves away quickly as d or K grows.
How close it comes depends on the spread of the scores q . k / sqrt(d): it is one for random unit vectors.

    python scripts/bench_linear_attention.py -o docs/results/linear-attention.md     # and the PNG beside it

Both are measured on one head of random numbers, on one thread. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_asr.atomic import write_file, writing_file
from edge_asr.benchmark.provenance import describe_cpu
from edge_asr.diagnostics.machine import Machine
from edge_asr.errors import require
from edge_asr.markdown import markdown_document, markdown_table
from edge_asr.model.attention.linear import taylor_attend

TERMS = (3, 5)
T_AT_D, D_AT_T = 16, 500
LENGTHS, WIDTHS = (62, 125, 250, 500, 1000, 2000, 4000), (4, 8, 16, 32, 64, 128)
SPREADS = {1.0: "-", 2.0: "--"}
#: Larger features are left out: T * d^(K-1) numbers of 4 bytes.
MOST_NUMBERS = 40_000_000


def attend_by_softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend exactly; query is scaled."""
    return torch.matmul(torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=-1), value)


def draw(n_frames: int, width: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw query (scaled), key and value, (1, 1, T, d) each; scores have standard deviation `spread`."""
    generator = torch.Generator().manual_seed(n_frames * 1000 + width)
    query, key, value = (torch.randn(1, 1, n_frames, width, generator=generator) for _ in range(3))
    return query * (spread * width**-0.5), key, value


def time_ms(call: Callable[[], Tensor], seconds: float) -> float:
    """Median processor time of a call, after one to warm up; others may use the machine."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < 1000 * seconds:
        begun = time.thread_time()
        call()
        times.append(1000 * (time.thread_time() - begun))
    return statistics.median(times)


def measure(n_frames: int, width: int, seconds: float) -> dict[str, Any]:
    """Time and error of softmax and of every number of terms that fits."""
    query, key, value = draw(n_frames, width)
    weight = torch.ones(1, 1, n_frames, 1)
    row: dict[str, Any] = {"t": n_frames, "d": width}
    row["softmax_ms"] = time_ms(lambda: attend_by_softmax(query, key, value), seconds)
    for terms in TERMS:
        if n_frames * width ** (terms - 1) > MOST_NUMBERS:
            continue
        row[f"k{terms}_ms"] = time_ms(
            lambda terms=terms: taylor_attend(query, key, value, weight, terms),  # type: ignore[misc]
            seconds,
        )
        for spread in SPREADS:
            scaled, keys, values = draw(n_frames, width, spread)
            exact = attend_by_softmax(scaled, keys, values)
            found = taylor_attend(scaled, keys, values, weight, terms)
            row[f"k{terms}_error_{spread:g}"] = float((found - exact).norm() / exact.norm())
    return row


def plot(by_length: list[dict[str, Any]], by_width: list[dict[str, Any]], output: Path) -> None:
    """Draw cost above and error below, over T on the left and over d on the right."""
    require("matplotlib", extra="bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    sides = (
        ("t", by_length, f"frames T (d = {T_AT_D})"),
        ("d", by_width, f"width of a head d (T = {D_AT_T})"),
    )
    for column, (axis, rows, label) in enumerate(sides):
        cost, error = panels[0][column], panels[1][column]
        cost.plot([row[axis] for row in rows], [row["softmax_ms"] for row in rows], "k.-", label="softmax")
        for index, terms in enumerate(TERMS):
            known = [row for row in rows if f"k{terms}_ms" in row]
            x = [row[axis] for row in known]
            cost.plot(x, [row[f"k{terms}_ms"] for row in known], f"C{index}.-", label=f"K = {terms}")
            for spread, line in SPREADS.items():
                values = [row[f"k{terms}_error_{spread:g}"] for row in known]
                name = f"K = {terms}, scores of spread {spread:g}"
                error.plot(x, values, f"C{index}.{line}", label=name)
        cost.set(ylabel="time of a head, ms", xlabel=label)
        error.set(ylabel="error relative to softmax", xlabel=label)
        for panel in (cost, error):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
    with writing_file(output) as file:
        figure.savefig(file, dpi=100, format="png")


def describe(by_length: list[dict[str, Any]], by_width: list[dict[str, Any]], image: str) -> str:
    """Write the page."""
    columns = ["T", "d", "softmax, ms"]
    for terms in TERMS:
        columns += [f"K = {terms}, ms", *(f"K = {terms}, error at spread {spread:g}" for spread in SPREADS)]
    rows, every = [], [*by_length, *by_width]
    for row in every:
        cells = [str(row["t"]), str(row["d"]), f"{row['softmax_ms']:.2f}"]
        for terms in TERMS:
            has = f"k{terms}_ms" in row
            cells.append(f"{row[f'k{terms}_ms']:.2f}" if has else "-")
            cells += [f"{row[f'k{terms}_error_{s:g}']:.4f}" if has else "-" for s in SPREADS]
        rows.append(cells)
    faster = [row["t"] for row in by_length if row["k3_ms"] < row["softmax_ms"]]
    crossing = f"from T = {faster[0]}" if faster else f"at no length up to T = {LENGTHS[-1]}"
    return markdown_document(
        [
            f"# Linear attention against softmax, {date.today().isoformat()}",
            [
                "`attention: linear` replaces exp(s) by K terms of its Taylor series (`taylor_terms`, 3 by",
                "default). One head of random queries, keys and values; processor time of one thread,",
                "float32. Written by `scripts/bench_linear_attention.py`.",
            ],
            f"![time and error over T and d]({image})",
            markdown_table(
                ["attention", "time a head", "memory a head"],
                [
                    ["softmax", "O(T^2 d)", "O(T^2)"],
                    ["linear, K terms", "O(T d^K)", "O(T d^(K-1))"],
                ],
                "lll",
            ),
            [
                f"- At d = {T_AT_D}, three terms are faster than softmax {crossing}; the counts say near",
                f"  d^2 = {T_AT_D**2} frames.",
                "- Two more terms multiply time and memory by d^2. More than d^(K-1) = 65536 numbers of a",
                "  frame and head are refused, so five terms need heads of 16 or narrower.",
                "- The error is that of the output, relative to its norm, for scores of a standard deviation",
                f"  (spread) of 1 and 2. At spread 1 three terms err by {_range('k3_error_1', every)}, five",
                f"  by {_range('k5_error_1', every)}; at spread 2 by {_range('k3_error_2', every)} and",
                f"  {_range('k5_error_2', every)}. So it is a kernel of its own, to be trained with: weights",
                "  of a model with softmax cannot be used with it.",
            ],
            markdown_table(columns, rows, "r" * len(columns)),
            f"Measured on {describe_cpu(Machine())}, with PyTorch {torch.__version__}.",
        ]
    )


def _range(key: str, rows: list[dict[str, Any]]) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{100 * min(values):.0f} to {100 * max(values):.0f} %"


@torch.inference_mode()
def main() -> int:
    """Measure, write the page and the plot, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="Markdown page; the PNG goes beside it"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of each time")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="largest T")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [length for length in LENGTHS if length <= arguments.longest]
    by_length = [measure(length, T_AT_D, arguments.seconds) for length in lengths]
    by_width = [measure(min(D_AT_T, arguments.longest), width, arguments.seconds) for width in WIDTHS]
    image = arguments.output.with_suffix(".png")
    plot(by_length, by_width, image)
    write_file(arguments.output, describe(by_length, by_width, image.name))
    print(json.dumps({"by_length": by_length, "by_width": by_width}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
