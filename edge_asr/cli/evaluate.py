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
from edge_asr.errors import ConfigError, EdgeAsrError, GateError, ManifestError, require
from edge_asr.printable import printable

if TYPE_CHECKING:
    from edge_asr.benchmark.confidence import ConfidenceReport
    from edge_asr.manifest import Utterance
    from edge_asr.metrics import ErrorRates, Similarities
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.runtime.transcript import Transcript

_log = logging.getLogger(__name__)

#: Keys of the JSON object, in order; programs rely on them.
JSON_KEYS = (
    "wer",
    "cer",
    "mer",
    "damerau_levenshtein",
    "jaccard",
    "cosine",
    "n_utterances",
    "audio_s",
    "rtfx",
    "substitutions",
    "deletions",
    "insertions",
)

_N_FRACTIONS = 6  # of them, at the beginning


@dataclass(slots=True)
class _Decoded:
    """Transcripts of the utterances that could be read, and the time they took."""

    utterances: list[Utterance]
    transcripts: list[Transcript]
    audio_s: float = 0.0
    compute_s: float = 0.0
    n_failed: int = 0


@click.command(name="evaluate")
@click.argument("manifests", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="MANIFEST...")
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
@click.option(
    "--confidence",
    "judge_confidence",
    is_flag=True,
    help="Also show how many words are right at which confidence, and the calibration error.",
)
@click.option(
    "--calibrate-confidence",
    "calibrate_confidence",
    is_flag=True,
    help="Write a table into the bundle that makes a word's confidence the probability that it is right.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw the words that are right over confidence; with one of the two options above.",
)
@recognizer_options
def command(
    manifests: tuple[Path, ...],
    as_json: bool,
    worst: int,
    normalization: str,
    judge_confidence: bool,
    calibrate_confidence: bool,
    plot: Path | None,
    recognizer: dict[str, Any],
) -> None:
    """Transcribe the utterances of MANIFEST and compare with its texts; several manifests are one set.

    MANIFEST is a JSON Lines file (audio_filepath, text), an LJSpeech folder or a LibriSpeech folder.
    Rates are fractions: 0.05 is five percent. Similarities are means over utterances, 1 for equal texts:
    damerau_levenshtein of characters, jaccard of sets of words, cosine of counts of three characters in a row
    (docs/training.md explains them). With --json, the list of --worst goes to stderr.
    """
    if plot is not None and not (judge_confidence or calibrate_confidence):
        raise click.UsageError("--plot draws confidences; add --confidence or --calibrate-confidence")
    require("jiwer", extra="eval")
    if plot is not None:
        require("matplotlib", extra="bench")
    from edge_asr.manifest import read_manifest
    from edge_asr.metrics import compute_error_rates, compute_similarities, find_worst_utterances
    from edge_asr.runtime.recognizer import Recognizer

    listed = [read_manifest(manifest) for manifest in manifests]
    bad_rows = [(path, row) for path, one in zip(manifests, listed, strict=True) for row in one.bad_rows]
    for path, row in bad_rows:
        say(f"{path}, row {row.row}: {row.reason}: {row.detail}")
    names = ", ".join(one.name for one in listed)
    with Recognizer.load(**recognizer) as loaded:
        if calibrate_confidence:
            _check_calibration(loaded)
        decoded = _decode(loaded, tuple(u for one in listed for u in one.utterances))
    if not decoded.utterances:
        raise ManifestError(f"no utterance of {names} could be read, so there is nothing to evaluate")
    references = [u.text for u in decoded.utterances]
    hypotheses = [transcript.text for transcript in decoded.transcripts]
    rates = compute_error_rates(references, hypotheses, normalization=normalization)
    similarities = compute_similarities(references, hypotheses, normalization=normalization)
    result = _result(rates, similarities, decoded)
    reports, details = _judge(loaded, decoded, normalization, calibrate_confidence, judge_confidence)
    if plot is not None:
        from edge_asr.benchmark.confidence import write_reliability_plot

        write_reliability_plot(reports, plot)
    if as_json:
        print_json(result | details)
    else:
        print_line(f"{recognizer['path_or_name']} on {names}, text normalization {normalization}")
        _print_table(result)
        _print_reliability(reports, details)
    if worst:
        for item in find_worst_utterances(references, hypotheses, n=worst, normalization=normalization):
            name = printable(decoded.utterances[item.index].id)
            click.echo(f"\n{name}  WER {item.wer:.3f}, {item.n_errors} errors\n{item.alignment}", err=as_json)
    n_bad = len(bad_rows) + decoded.n_failed
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
            decoded.transcripts.append(transcript)
    return decoded


def _check_calibration(recognizer: Recognizer) -> None:
    """Refuse, before the work, what cannot be calibrated."""
    from edge_asr.bundle.confidence import check_writable

    if recognizer.bundle is not None:
        check_writable(recognizer.bundle)
    if recognizer.decoder_kind is None:
        raise ConfigError("confidences are calibrated for greedy and beam search; leave the grammar out")


def _judge(
    recognizer: Recognizer, decoded: _Decoded, normalization: str, calibrates: bool, judges: bool
) -> tuple[list[ConfidenceReport], dict[str, Any]]:
    """Judge confidences, and calibrate them, if asked; return reports, and what JSON gets."""
    if not (calibrates or judges):
        return [], {}
    from edge_asr.benchmark.confidence import calibrate, judge_words, report_confidence
    from edge_asr.bundle.confidence import write_table
    from edge_asr.runtime.transcript import words_from_tokens

    if not calibrates:
        words = [transcript.words for transcript in decoded.transcripts]
        judged = judge_words(decoded.utterances, words, normalization)
        name = "as decoded" if recognizer.confidence_table is None else "calibrated"
        report = report_confidence(name, judged.confidences, judged.is_right)
        calibrated = recognizer.confidence_table is not None
        return [report], {"confidence": {"calibrated": calibrated, **report.to_dict()}}
    raw = [words_from_tokens(transcript.tokens, recognizer.vocabulary) for transcript in decoded.transcripts]
    judged = judge_words(decoded.utterances, raw, normalization)
    table, before, after = calibrate(recognizer, judged)
    if after.error >= before.error:
        raise GateError(
            f"the calibration error of words held out is {after.error:.4f} with a table and "
            f"{before.error:.4f} without, so nothing was written; give more speech, or keep the confidences "
            "as they are"
        )
    assert recognizer.bundle is not None
    write_table(recognizer.bundle, table)
    details = {
        "calibrated": f"{table.precision} {table.decoder}",
        "n_knots": len(table.raw),
        "before": before.to_dict(),
        "after": after.to_dict(),
    }
    return [before, after], {"confidence": details}


def _print_reliability(reports: list[ConfidenceReport], details: dict[str, Any]) -> None:
    if not reports:
        return
    from edge_asr.benchmark.confidence import reliability_table
    from edge_asr.benchmark.table import make_console, print_table

    for report in reports:
        print_table(reliability_table(report), make_console())
    if len(reports) > 1:
        found = details["confidence"]
        print_line(f"the bundle has a table for {found['calibrated']} now, of {found['n_knots']} knots")


def _result(rates: ErrorRates, similarities: Similarities, decoded: _Decoded) -> dict[str, Any]:
    values = {
        **rates.to_dict(),
        **similarities.to_dict(),
        "audio_s": round(decoded.audio_s, 3),
        "rtfx": round(decoded.audio_s / decoded.compute_s, 2),
    }
    return {key: round(v, 6) if isinstance(v := values[key], float) else v for key in JSON_KEYS}


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:.4f}" if key in JSON_KEYS[:_N_FRACTIONS] else str(value))
    Console().print(table)
