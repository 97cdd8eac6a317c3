"""`edge-asr transcribe --ray`: its options, the inputs, the workers, and how far they are.

Progress is a line on stderr every ten seconds, with or without a terminal: such runs last hours.
What this file does not do: the work (edge_asr.cluster).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import FiniteRange, option_group
from edge_asr.cli.terminal import print_json, print_line, say
from edge_asr.errors import ManifestError

if TYPE_CHECKING:
    from edge_asr.cluster.driver import Progress

_SHOW_EVERY_S = 10.0
_DECODING = ("decoder", "beam_size", "hotwords", "lm", "grammar", "grammar_threshold", "grammar_mode")

#: Adds --ray and what belongs to it; `cluster` goes to `transcribe_archive`.
cluster_options = option_group(
    "cluster",
    (
        click.option(
            "--ray",
            "address",
            is_flag=False,
            flag_value="local",
            metavar="[ADDRESS|local]",
            help="Share the work among the machines of a Ray cluster, or processes of this one (local); with "
            "--manifest and -o. The same command again continues (docs/scale.md).",
        ),
        click.option(
            "--manifest",
            metavar="FILE|DIR",
            help="With --ray: a JSON Lines manifest, or a folder of sound files; a path or a URL of fsspec.",
        ),
        click.option(
            "--shards",
            "shard_format",
            type=click.Choice(["parquet", "jsonl"]),
            help="With --ray: format of the results. The default is parquet.",
        ),
        click.option(
            "--shard-minutes",
            type=FiniteRange(min=0, min_open=True),
            metavar="MIN",
            help="With --ray: most sound in one file of results. The default is 30.",
        ),
        click.option(
            "--workers",
            "n_workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="With --ray: workers to start, each with --threads cores (1 by default), or with a GPU. The "
            "default is as many as the cluster has room for.",
        ),
    ),
)


def transcribe_archive(
    *,
    address: str | None,
    manifest: str | None,
    shard_format: str | None,
    shard_minutes: float | None,
    n_workers: int | None,
    output: str | None,
    recognizer: dict[str, Any],
    self_test: bool,
    digits: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Transcribe what a manifest lists in a Ray cluster; the arguments are the options of the command."""
    context = click.get_current_context()
    if address is None:
        raise click.UsageError(
            "--manifest, --shards, --shard-minutes and --workers need --ray; add --ray local"
        )
    if context.params["files"]:
        raise click.UsageError(
            f"--ray takes no files as arguments, and got {context.params['files'][0]!r}; list them in a "
            "manifest: --manifest FILE"
        )
    if manifest is None:
        raise click.UsageError("--ray needs the sounds as --manifest FILE|DIR; add it")
    if output is None:
        raise click.UsageError("--ray writes its results to a folder; add -o DIR")
    if context.get_parameter_source("output_format") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "--ray writes rows, so --format has no meaning; choose --shards parquet or jsonl"
        )
    from edge_asr.cluster import driver, ray_pool
    from edge_asr.cluster.inputs import list_inputs
    from edge_asr.cluster.ledger import Ledger
    from edge_asr.cluster.store import Store
    from edge_asr.cluster.worker import WorkerSettings, bundle_sha256
    from edge_asr.errors import require

    ray_pool.import_ray(address)
    if shard_format != "jsonl":
        require("pyarrow", extra="ray")
    threads = recognizer.pop("num_threads") or 1
    sha256 = bundle_sha256(recognizer["path_or_name"])
    store = Store(output, "jsonl" if shard_format == "jsonl" else "parquet")
    asked = {
        name: str(context.params[name])
        for name in ("precision", *_DECODING)
        if context.params[name] is not None
    }
    with closing(Ledger()) as ledger:
        ledger.add(list_inputs(manifest))
        if not ledger.count(done=False)[0]:
            raise ManifestError(
                f"{manifest} lists no sound; give a manifest with rows, or a folder of sound files"
            )
        store.begin({"bundle_sha256": sha256, **asked, "digits": digits}, force=force)
        progress = driver.resume(ledger, store)
        if progress.n_before:
            say(f"{progress.n_before} of {progress.n_inputs} files are finished already")
        n_left = progress.n_inputs - progress.n_done
        if n_left:
            num_cpus = None if n_workers is None else n_workers * threads
            with ray_pool.ray_session(address, num_cpus=num_cpus) as ray:
                room, num_gpus = ray_pool.count_workers(ray, recognizer["backend"], threads)
                settings = WorkerSettings(
                    recognizer=recognizer,
                    bundle_sha256=sha256,
                    store=store,
                    threads=threads,
                    digits=digits,
                    self_test=self_test,
                )
                pool = ray_pool.RayPool(
                    ray, settings, n_workers=min(n_workers or room, n_left), num_gpus=num_gpus
                )
                driver.run(
                    pool,
                    ledger,
                    store,
                    progress,
                    shard_s=driver.SHARD_S if shard_minutes is None else 60 * shard_minutes,
                    show=_Lines().show,
                )
    document = {**dataclasses.asdict(progress), "rtfx": round(progress.rtfx, 2), "output": output}
    if as_json:
        print_json(document)
    else:
        print_line(f"{output}: {_describe(progress)}")
    if progress.n_errors:
        sys.exit(1)


class _Lines:
    """Says how far a run is, every ten seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if now - self._last >= _SHOW_EVERY_S:
            self._last = now
            left = "" if progress.eta_s is None else f", about {_duration(progress.eta_s)} left"
            say(f"{_describe(progress)}; {progress.n_workers} workers busy{left}")


def _describe(progress: Progress) -> str:
    errors = f", {progress.n_errors} with an error" if progress.n_errors else ""
    deaths = f", workers died: {progress.n_deaths}" if progress.n_deaths else ""
    audio = f"{progress.audio_s / 3600:.2f} h of audio in {_duration(progress.seconds)}"
    speed = f"{progress.rtfx:.1f} x real time{deaths}"
    return f"{progress.n_done} of {progress.n_inputs} files{errors}; {audio}, {speed}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
