"""`edge-asr evaluate`: word and character error rates of a bundle on a manifest.

edge_asr.metrics computes the rates, as fractions, over the whole set. An utterance that cannot be read is
reported on stderr and left out of the rates, and makes the exit code 1: a rate over fewer utterances than
requested must not pass for the real one.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import progress_bar, recognizer_options
from edge_asr.cli.terminal import print_json, print_line, say
from edge_asr.errors import EdgeAsrError, ManifestError, require
from edge_asr.printable import printable

if TYPE_CHECKING:
    from edge_asr.manifest import Utterance
    from edge_asr.metrics import ErrorRates
    from edge_asr.runtime.recognizer import Recognizer

_log = logging.getLogger(__name__)

#: Keys of the JSON object, in order; programs rely on them.
JSON_KEYS = (
    "wer",
    "cer",
    "mer",
    "n_utterances",
    "audio_s",
    "rtfx",
    "substitutions",
    "deletions",
    "insertions",
)


@dataclass(slots=True)
class _Decoded:
    """Hypotheses of the utterances that could be read, and the time they took."""

    utterances: list[Utterance]
    hypotheses: list[str]
    audio_s: float = 0.0
    compute_s: float = 0.0
    n_failed: int = 0


@click.command(name="evaluate")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line.")
@click.option(
    "--worst",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also list the N worst utterances, aligned.",
)
@click.option(
    "--normalize",
    "normalization",
    type=click.Choice(["none", "basic"]),
    default="none",
    show_default=True,
    help="How to normalize both texts; basic: NFKC, lower case, only letters, digits and apostrophes.",
)
@recognizer_options
def command(
    manifest: Path,
    as_json: bool,
    worst: int,
    normalization: str,
    recognizer: dict[str, Any],
) -> None:
    """Transcribe the utterances of MANIFEST and compare with its texts.

    MANIFEST is a JSON Lines file (audio_filepath, text), an LJSpeech folder or a LibriSpeech folder.
    Rates are fractions: 0.05 is five percent. With --json, the list of --worst goes to stderr.
    """
    require("jiwer", extra="eval")
    from edge_asr.manifest import read_manifest
    from edge_asr.metrics import compute_error_rates, find_worst_utterances
    from edge_asr.runtime.recognizer import Recognizer

    listed = read_manifest(manifest)
    for row in listed.bad_rows:
        say(f"{manifest}, row {row.row}: {row.reason}: {row.detail}")
    with Recognizer.load(**recognizer) as loaded:
        decoded = _decode(loaded, listed.utterances)
    if not decoded.utterances:
        raise ManifestError(f"no utterance of {manifest} could be read, so there is nothing to evaluate")
    references = [u.text for u in decoded.utterances]
    rates = compute_error_rates(references, decoded.hypotheses, normalization=normalization)
    result = _result(rates, decoded)
    if as_json:
        print_json(result)
    else:
        print_line(f"{recognizer['path_or_name']} on {listed.name}, text normalization {normalization}")
        _print_table(result)
    if worst:
        for item in find_worst_utterances(
            references, decoded.hypotheses, n=worst, normalization=normalization
        ):
            name = printable(decoded.utterances[item.index].id)
            click.echo(f"\n{name}  WER {item.wer:.3f}, {item.n_errors} errors\n{item.alignment}", err=as_json)
    n_bad = len(listed.bad_rows) + decoded.n_failed
    if n_bad:
        say(f"{n_bad} utterances were left out of the rates, see above")
        sys.exit(1)


def _decode(recognizer: Recognizer, utterances: tuple[Utterance, ...]) -> _Decoded:
    decoded = _Decoded([], [])
    with progress_bar() as progress:
        for utterance in progress.track(utterances, description="evaluating"):
            started = time.perf_counter()
            try:
                transcript = recognizer.transcribe_file(utterance.audio_path)
            except (EdgeAsrError, OSError) as error:
                _log.debug("traceback of the error below", exc_info=error)
                say(f"row {utterance.row}, {utterance.id}: {error}")
                decoded.n_failed += 1
                continue
            decoded.compute_s += time.perf_counter() - started
            decoded.audio_s += transcript.duration_s
            decoded.utterances.append(utterance)
            decoded.hypotheses.append(transcript.text)
    return decoded


def _result(rates: ErrorRates, decoded: _Decoded) -> dict[str, Any]:
    values = {
        **rates.to_dict(),
        "audio_s": round(decoded.audio_s, 3),
        "rtfx": round(decoded.audio_s / decoded.compute_s, 2),
    }
    return {key: round(v, 6) if isinstance(v := values[key], float) else v for key in JSON_KEYS}


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:.4f}" if key in ("wer", "cer", "mer") else str(value))
    Console().print(table)
