#!/usr/bin/env python3
"""Compare our loaders, models and runtime with golden fixtures made by the original projects' own code.

    scripts/check_golden.py DIR [--dump OUT]

DIR is a fixture or a folder of fixtures (golden/fixtures.py says what one is). Prints one row each: feature
error, log-prob error in PyTorch and through an exported bundle from the raw waveform, tokens; where the
original streamed, the same chunk by chunk (golden/streaming.py); of attention decoders, log-probs, scores of
whole texts, and the texts that rescoring and searches choose (golden/decoders.py). The feature error that is
judged weighs bands too weak for a float32 transform by their amplitude (golden/compare.py, `float32_weight`);
"unweighted" is the largest of all. Exits 3 when a row fails or no loader takes a fixture. --dump writes
OUT/<fixture>.npz with clip<i>_feat, clip<i>_logp, clip<i>_ids and, of streams, the keys of golden.npz
(stream_*_logp<k>, _ids, caches) as the runtime computed them from the sound files, in the original's order of
outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from golden.compare import Result, compare_fixture
from golden.features_only import compare_features_only
from golden.fixtures import Fixture, find_fixtures
from rich.console import Console
from rich.table import Table

EXIT_FAILED = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a fixture, or a folder of fixtures")
    parser.add_argument("--dump", type=Path, metavar="OUT", help="write what the runtime computed here")
    parser.add_argument("--torch-only", action="store_true", help="skip the bundle (a rehearsal: exit 3)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    options = parser.parse_args(arguments)
    fixtures = find_fixtures(options.folder) if options.folder.is_dir() else []
    if not fixtures:
        print(f"{options.folder} holds no fixture (a folder with golden.json); give another", file=sys.stderr)
        return EXIT_FAILED
    results: dict[str, Result] = {}
    for fixture in fixtures:
        print(f"{fixture.name} ...", file=sys.stderr, flush=True)
        results[fixture.name] = _compare(fixture, with_runtime=not options.torch_only)
        if options.dump is not None and results[fixture.name].dumped:
            options.dump.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = results[fixture.name].dumped
            np.savez_compressed(options.dump / f"{fixture.name}.npz", **arrays)
    if options.json:
        print(json.dumps([_row(fixture, results[fixture.name]) for fixture in fixtures]))
    else:
        _print_table(fixtures, results)
    failed = options.torch_only or any(result.failures() for result in results.values())
    return EXIT_FAILED if failed else 0


def _compare(fixture: Fixture, *, with_runtime: bool) -> Result:
    try:
        if not fixture.has_model:
            return compare_features_only(fixture)
        if fixture.checkpoint is None:
            return Result(error="no loader recognizes it")
        return compare_fixture(fixture, with_runtime=with_runtime)
    except Exception as error:  # noqa: BLE001  (one failure, of whatever kind, is one row)
        return Result(error=f"{type(error).__name__}: {str(error) or 'no message'}")


def _row(fixture: Fixture, result: Result) -> dict[str, object]:
    names = [name for name in Result.__slots__ if name != "dumped"]
    return {
        "fixture": fixture.name,
        "family": fixture.family,
        "variant": fixture.variant,
        **{name: getattr(result, name) for name in names},
        "failures": result.failures(),
    }


def _print_table(fixtures: list[Fixture], results: dict[str, Result]) -> None:
    console = Console(width=max(Console().width, 200))
    table = Table(title="golden outputs: largest absolute differences, single clips")
    for header in (
        "family",
        "variant",
        "feature",
        "unweighted",
        "mean",
        "torch",
        "runtime",
        "batch",
        "batch golden",
        "stream torch",
        "stream cache",
        "stream runtime",
        "stream whole",
        "decoder torch",
        "decoder runtime",
        "decoder scores",
        "tokens",
        "",
    ):
        table.add_column(header)
    for fixture in fixtures:
        result = results[fixture.name]
        numbers = (
            result.feature_max, result.feature_unweighted, result.feature_mean, result.torch, result.runtime,
            result.batch, result.batch_golden, result.stream_torch, result.stream_cache,
            result.stream_runtime, result.stream_whole, result.decoder_torch, result.decoder_runtime,
            result.decoder_scores,
        )  # fmt: skip
        answers = (result.tokens_torch, result.tokens_runtime, result.tokens_stream, result.tokens_decoder)
        tokens = [value for value in answers if value is not None]
        failures = result.failures()
        table.add_row(
            fixture.family,
            fixture.variant,
            *("-" if number is None else f"{number:.1e}" for number in numbers),
            "-" if not tokens else "equal" if all(tokens) else "DIFFER",
            "FAILED" if failures else "ok",
        )
    console.print(table)
    for fixture in fixtures:
        for failure in results[fixture.name].failures():
            console.print(f"{fixture.name}: {failure}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
