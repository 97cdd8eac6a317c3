"""`edge-asr lm`: build a language model from text, convert, tune it on speech, and put it into a bundle.

It parses and prints. What this file does not do: build, read or write models (edge_asr.runtime.decoding.lm),
try weights (edge_asr.benchmark.language_model).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import FiniteRange, bundle_options, progress_bar
from edge_asr.cli.terminal import print_json, print_line
from edge_asr.errors import ConfigError

if TYPE_CHECKING:
    from edge_asr.benchmark.language_model import Tried
    from edge_asr.runtime.decoding.lm.ngrams import Ngrams

_OUTPUT = click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the model goes; a name that ends in .arpa makes ARPA text.",
)
_FORCE = click.option("--force", is_flag=True, help="Overwrite a file that exists.")
_PRUNE = click.option(
    "--prune",
    type=FiniteRange(min=0),
    default=0.0,
    metavar="X",
    help="Leave out n-grams whose loss changes the perplexity by a smaller share, such as 1e-8.",
)
_MAX_MB = click.option(
    "--max-mb",
    type=FiniteRange(min=0, min_open=True),
    metavar="MB",
    help="Leave out as few n-grams as it takes for a file of this size.",
)


def _listed(one: Any) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a callback that parses values parted by commas; nothing stays None."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        return None if value is None else tuple(one.convert(v.strip(), param, ctx) for v in value.split(","))

    return parse


@click.group(name="lm")
def command() -> None:
    """Build, convert, tune and attach language models: which words are likely after which.

    --lm uses one, and so does --decoder beam with a bundle that has one; docs/decoding.md describes them.
    """


@command.command()
@click.argument("texts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TEXT...")
@_OUTPUT
@click.option("--order", type=int, default=3, show_default=True, help="Words that it looks at.")
@click.option(
    "--exclude",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="Sentences to leave out, such as the manifest of a test set; may be repeated.",
)
@click.option(
    "--vocabulary",
    "vocabulary_size",
    type=int,
    metavar="N",
    help="Only the N most frequent words. The default is all.",
)
@click.option(
    "--cutoffs",
    callback=_listed(click.IntRange(min=0)),
    metavar="N,N,N",
    help="Leave out n-grams that occur as often or less, by their length: 0,0,1 leaves out triples that "
    "occur once.",
)
@_PRUNE
@_MAX_MB
@click.option(
    "--normalize",
    "normalization",
    type=click.Choice(["basic", "none"]),
    default="basic",
    show_default=True,
    help="basic takes letters, digits and apostrophes in lower case; none takes the text as it is.",
)
@_FORCE
def build(
    texts: tuple[Path, ...],
    output: Path,
    order: int,
    exclude: tuple[Path, ...],
    vocabulary_size: int | None,
    cutoffs: tuple[int, ...] | None,
    prune: float,
    max_mb: float | None,
    normalization: str,
    force: bool,
) -> None:
    """Build a model from TEXT: files with a sentence a line, or manifests.

    Words are written as the recognizer writes them; case does not matter. Smoothing is modified Kneser-Ney.
    """
    from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
    from edge_asr.runtime.decoding.lm.text import read_sentences

    _check_output(output, force)
    sentences = read_sentences(texts, exclude=exclude, normalization=normalization)
    model = build_ngrams(sentences, order, vocabulary_size=vocabulary_size, cutoffs=cutoffs or ())
    _write(output, model, prune, max_mb)


@command.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.arpa")
@_OUTPUT
@_PRUNE
@_MAX_MB
@_FORCE
def convert(model: Path, output: Path, prune: float, max_mb: float | None, force: bool) -> None:
    """Convert a model from ARPA text, which SRILM, KenLM's lmplz and others write."""
    from edge_asr.runtime.decoding.lm.arpa import read_arpa

    _check_output(output, force)
    _write(output, read_arpa(model), prune, max_mb)


@command.command()
@click.argument("manifest", type=click.Path(path_type=Path), metavar="MANIFEST")
@click.option("--lm", type=click.Path(path_type=Path), metavar="FILE", help="Default: that of the bundle.")
@click.option("--alpha", "alphas", callback=_listed(FiniteRange()), metavar="X,X", help="Weights to try.")
@click.option(
    "--beta", "betas", callback=_listed(FiniteRange()), metavar="X,X", help="What a word adds, to try."
)
@click.option("--beam-size", type=click.IntRange(min=1, max=1024), default=32, show_default=True)
@click.option("--dry-run", is_flag=True, help="Show what is best, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@bundle_options
def tune(
    manifest: Path,
    lm: Path | None,
    alphas: tuple[float, ...] | None,
    betas: tuple[float, ...] | None,
    beam_size: int,
    dry_run: bool,
    as_json: bool,
    bundle: dict[str, Any],
) -> None:
    """Find the weights of a language model on speech, and write them into its file.

    Those of the bundle's own go into bundle.json, and the file stays as it is.
    MANIFEST holds speech that the recognizer did not learn from, and whose text the model does not know.
    """
    from edge_asr.benchmark.grammar import LogProbsRecorder, hear_clips
    from edge_asr.benchmark.language_model import ALPHAS, BETAS, tune_weights
    from edge_asr.bundle.writer import attach_language_model
    from edge_asr.manifest import read_manifest
    from edge_asr.runtime.decoding.lm.model_file import LanguageModel, set_weights
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.vocabulary import Vocabulary

    recorders: list[LogProbsRecorder] = []

    def record(vocabulary: Vocabulary) -> LogProbsRecorder:
        recorders.append(LogProbsRecorder(vocabulary))
        return recorders[-1]

    utterances = [u for u in read_manifest(manifest).utterances if u.text.strip()]
    if not utterances:
        raise ConfigError(f"{manifest} has no speech with a text; give recordings and what was said")
    with Recognizer.load(**bundle, decoder=record) as loaded, progress_bar() as bar:
        assert loaded.bundle is not None
        path = lm or loaded.bundle.language_model_path
        if path is None:
            raise ConfigError(f"{loaded.bundle.path} has no language model; give one with --lm")
        model = LanguageModel.load(path)
        task = bar.add_task("recognizing", total=2.0)
        clips = hear_clips(loaded, recorders[0], utterances, lambda share: bar.update(task, completed=share))
        tried = tune_weights(
            model,
            loaded.vocabulary,
            clips,
            alphas=alphas or ALPHAS,
            betas=betas or BETAS,
            beam_size=beam_size,
            progress=lambda share: bar.update(task, completed=1 + share),
        )
    if not dry_run and lm is not None:
        set_weights(lm, tried[0].weights)
    elif not dry_run:
        attach_language_model(loaded.bundle, path, dataclasses.asdict(tried[0].weights))
    _print_tried(tried, as_json, len(clips))


@command.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("bundle", metavar="BUNDLE")
def attach(model: Path, bundle: str) -> None:
    """Put the language model FILE into BUNDLE, for --decoder beam; the word none takes it out again."""
    from edge_asr.bundle.folder import Bundle
    from edge_asr.bundle.writer import attach_language_model
    from edge_asr.runtime.decoding.lm.model_file import N_SPECIAL, LanguageModel

    target = Bundle.load(bundle, allow_unverified=True)
    if str(model) == "none":
        attach_language_model(target, None)
        print_line(f"{target.path}: no language model")
        return
    header = LanguageModel.load(model).header
    attach_language_model(target, model)
    print_line(f"{target.path}: language model of {header.counts[0] - N_SPECIAL} words")


def _check_output(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; add --force to overwrite it, or give another -o")


def _write(output: Path, model: Ngrams, threshold: float, max_mb: float | None) -> None:
    """Prune a model and write it."""
    from edge_asr.runtime.decoding.lm.arpa import write_arpa
    from edge_asr.runtime.decoding.lm.model_file import write_model
    from edge_asr.runtime.decoding.lm.pruning import prune, prune_to_size

    model = prune(model, threshold)
    if max_mb is not None:
        model = prune_to_size(model, 1e6 * max_mb)
    if output.suffix == ".arpa":
        write_arpa(output, model)
    else:
        write_model(output, model)
    counts = ", ".join(f"{len(level)} of {n}" for n, level in enumerate(model.levels, start=1))
    print_line(f"{output}: n-grams by length: {counts} words; {output.stat().st_size / 1e6:.1f} MB")


def _print_tried(tried: list[Tried], as_json: bool, n_clips: int) -> None:
    best = tried[0].weights
    if as_json:
        rows = [{"alpha": t.weights.alpha, "beta": t.weights.beta, "wer": round(t.wer, 5)} for t in tried]
        print_json({"alpha": best.alpha, "beta": best.beta, "weights": rows})
        return
    from edge_asr.benchmark.table import Table, make_console, print_table

    table = Table(
        title=f"{n_clips} recordings; the best weights first",
        columns=("alpha", "beta", "WER"),
        rows=tuple((f"{t.weights.alpha:g}", f"{t.weights.beta:g}", f"{100 * t.wer:.2f} %") for t in tried),
    )
    print_table(table, make_console())
