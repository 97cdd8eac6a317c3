"""`edge-asr grammar`: check a grammar against a model, compile it, and find its threshold.

It parses and prints. What this file does not do: read or compile grammars
(edge_asr.runtime.decoding.grammar), recognize (edge_asr.benchmark.grammar).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import FiniteRange, bundle_options, progress_bar
from edge_asr.cli.terminal import print_json, print_line, say
from edge_asr.errors import ConfigError, GateError

if TYPE_CHECKING:
    from edge_asr.benchmark.grammar import GrammarCounts
    from edge_asr.runtime.decoding.grammar.check import GrammarReport
    from edge_asr.runtime.decoding.grammar.graph import TokenGraph
    from edge_asr.runtime.decoding.grammar.recognition import Mode

_FILE = click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
_MODEL = click.option(
    "-m",
    "--model",
    metavar="BUNDLE",
    default="tiny-en",
    show_default=True,
    help="Folder of a bundle, or the name of an embedded model.",
)


@click.group(name="grammar")
def command() -> None:
    """Check, compile and tune grammars: the phrases that --grammar recognizes.

    A grammar is a text file with one phrase a line, or JSGF; docs/decoding.md describes both.
    """


@command.command()
@_FILE
@_MODEL
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def check(file: Path, model: str, as_json: bool) -> None:
    """Show the size of a grammar, what the model cannot spell, and which phrases sound alike.

    The exit code is 1 if a word cannot be spelled.
    """
    import dataclasses

    from edge_asr.bundle.folder import Bundle
    from edge_asr.runtime.decoding.grammar.check import check_grammar
    from edge_asr.runtime.decoding.grammar.read import read_grammar

    vocabulary = Bundle.load(model, check_hashes=False).vocabulary
    report = check_grammar(read_grammar(file), vocabulary)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        _print_report(report)
    if report.unspelled:
        sys.exit(1)


def _print_report(report: GrammarReport) -> None:
    for word in report.unspelled:
        why = f": no token has {word.missing!r}" if word.missing else ""
        say(f"{report.source}, line {word.line}: the model cannot spell {word.word!r}{why}")
    if report.unspelled:
        return
    n_phrases = f"{report.n_compared} phrases" if report.is_complete else "many phrases"
    print_line(
        f"{report.source}: {n_phrases} of {report.n_words} words; {report.n_nodes} nodes, "
        f"{report.n_arcs} arcs"
    )
    if report.alike:
        among = "" if report.is_complete else f", among {report.n_compared} drawn at random"
        print_line(f"most alike, by tokens that differ{among}:")
    for pair in report.alike:
        print_line(f"{pair.distance:4d}  {pair.first} / {pair.second}")


@command.command(name="compile")
@_FILE
@_MODEL
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="Where the compiled grammar goes; --grammar takes it, with this model only.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def compile_(file: Path, model: str, output: Path, force: bool) -> None:
    """Compile a large grammar once, so that it loads at once."""
    from edge_asr.bundle.folder import Bundle
    from edge_asr.runtime.decoding.grammar.graph import compile_graph
    from edge_asr.runtime.decoding.grammar.read import read_grammar

    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; add --force to overwrite it, or give another -o")
    graph = compile_graph(read_grammar(file), Bundle.load(model, check_hashes=False).vocabulary)
    graph.save(output)
    print_line(f"{output}: {len(graph)} nodes, {graph.n_arcs} arcs")


@command.command()
@_FILE
@click.option(
    "--commands",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="MANIFEST",
    help="Recordings of phrases of the grammar; rows with other texts are left out.",
)
@click.option(
    "--other",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="MANIFEST",
    help="Recordings of other speech or of noise; rows with phrases of the grammar are left out.",
)
@click.option(
    "--max-false-accepts",
    type=FiniteRange(min=0),
    default=1.0,
    show_default=True,
    metavar="N",
    help="Most phrases taken from an hour of other speech.",
)
@click.option("--spot", is_flag=True, help="Phrases may stand within other speech.")
@click.option(
    "--save", is_flag=True, help="Write the threshold into FILE if it is compiled, else into the bundle."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@bundle_options
def tune(
    file: Path,
    commands: Path,
    other: Path,
    max_false_accepts: float,
    spot: bool,
    save: bool,
    as_json: bool,
    bundle: dict[str, Any],
) -> None:
    """Find the threshold of a grammar on recordings: the most commands right at few false accepts.

    Pieces of one to four words of the other recordings are rejected or accepted too. How good the choice is
    for people who were not asked is found by cross-validation over the speakers of the manifests.

    The exit code is 3 if every threshold has too many false accepts.
    """
    from edge_asr.benchmark.grammar import (
        LogProbsRecorder,
        choose_threshold,
        count_by_threshold,
        cut_pieces,
        find_phrases,
        hear_clips,
        hold_out,
    )
    from edge_asr.manifest import read_manifest
    from edge_asr.runtime.decoding.grammar.read import load_graph
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.vocabulary import Vocabulary

    recorders: list[LogProbsRecorder] = []

    def record(vocabulary: Vocabulary) -> LogProbsRecorder:
        recorders.append(LogProbsRecorder(vocabulary))
        return recorders[-1]

    with Recognizer.load(**bundle, decoder=record) as loaded, progress_bar() as bar:
        graph = load_graph(file, loaded.vocabulary)
        known = [u for u in read_manifest(commands).utterances if graph.has_phrase(u.text)]
        unknown = [u for u in read_manifest(other).utterances if not graph.has_phrase(u.text)]
        if not known or not unknown:
            empty = f"{commands} has no text that is" if not known else f"{other} has only texts that are"
            raise ConfigError(f"{empty} a phrase of {file}; a threshold takes recordings of both kinds")
        task = bar.add_task("recognizing", total=2.0)
        said = hear_clips(loaded, recorders[0], known, lambda share: bar.update(task, completed=share))
        rest = hear_clips(loaded, recorders[0], unknown, lambda share: bar.update(task, completed=1 + share))
        pieces = cut_pieces(rest, loaded.vocabulary)
        folder = None if loaded.bundle is None else loaded.bundle.path
    mode: Mode = "spot" if spot else "whole"
    phrases = find_phrases(graph, said, mode=mode)
    others = find_phrases(graph, [*rest, *pieces], mode=mode)
    counts = count_by_threshold(phrases, others)
    chosen = choose_threshold(counts, max_false_accepts)
    held_out = hold_out(phrases, others, max_false_accepts)
    if as_json:
        print_json(
            {
                "threshold": None if chosen is None else chosen.threshold,
                "thresholds": [count.to_dict() for count in counts],
                "held_out": None if held_out is None else held_out.to_dict(),
            }
        )
    else:
        _print_counts(counts)
    if chosen is None or chosen.threshold is None:
        raise GateError(
            f"every threshold takes more than {max_false_accepts:g} phrases an hour from other speech; make "
            "phrases longer or more different (edge-asr grammar check), or allow more"
        )
    if not as_json:
        print_line(f"--grammar-threshold {chosen.threshold:g}: {_in_words(chosen)}")
        if held_out is not None:
            print_line(f"chosen on other speakers: {_in_words(held_out)}")
    if save and folder is not None:
        _save_threshold(file, graph, folder, mode, chosen.threshold)


def _in_words(count: GrammarCounts) -> str:
    return (
        f"{count.n_right} of {count.n_commands} commands right, {count.n_rejected} rejected; "
        f"{count.n_false_accepts} false accepts, {count.false_accepts_an_hour:.1f} an hour"
    )


def _save_threshold(file: Path, graph: TokenGraph, folder: Path, mode: Mode, threshold: float) -> None:
    """Write a threshold into a compiled grammar, or into a bundle."""
    import dataclasses

    from edge_asr.bundle.folder import Bundle
    from edge_asr.bundle.manifest import GrammarThresholds
    from edge_asr.bundle.writer import write_manifest
    from edge_asr.runtime.decoding.grammar.read import is_compiled

    if is_compiled(file):
        dataclasses.replace(graph, thresholds={**graph.thresholds, mode: threshold}).save(file)
        say(f"{file} has this threshold now")
        return
    info = Bundle.load(folder, allow_unverified=True, check_hashes=False).info
    known = dataclasses.replace(info.grammar or GrammarThresholds(), **{mode: threshold})
    try:
        write_manifest(folder, dataclasses.replace(info, grammar=known))
    except OSError as error:
        raise ConfigError(
            f"the bundle {folder} cannot be written ({error.strerror}); copy it and give the copy with -m, "
            f"or pass --grammar-threshold {threshold:g}"
        ) from error
    say(f"{folder} has this threshold now")


def _print_counts(counts: list[GrammarCounts]) -> None:
    from edge_asr.benchmark.table import Table, make_console, print_table

    first = counts[0]
    table = Table(
        title=f"{first.n_commands} commands, {first.n_other} other clips, {first.other_s / 60:.1f} min",
        columns=("threshold", "right", "wrong", "rejected", "false accepts", "an hour"),
        rows=tuple(
            (
                f"{c.threshold or 0.0:g}",
                *(str(n) for n in (c.n_right, c.n_wrong, c.n_rejected, c.n_false_accepts)),
                f"{c.false_accepts_an_hour:.1f}",
            )
            for c in counts
        ),
    )
    print_table(table, make_console())
