"""Progress bars and tables on stderr, by rich. What this file does not do: change training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from edge_asr.manifest import Utterance
from edge_asr.training.config import OptimConfig
from edge_asr.training.corpus import Corpus
from edge_asr.training.evaluate import Scores


class RunProgress:
    """A bar for decoding, then one for steps; plain lines if stderr is no terminal."""

    def __init__(self, *, log_every_steps: int, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled)
        self._log_every = log_every_steps
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def track(self, rows: Sequence[Utterance], label: str) -> Iterable[Utterance]:
        """Wrap rows in a bar."""
        if not self.console.is_terminal:
            self.console.print(f"{label}: {len(rows)} rows", highlight=False)
            yield from rows
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            yield from bar.track(rows, description=label)

    def show_corpora(self, train: Corpus, dev: Corpus, test: Corpus) -> None:
        """Show the training data, and a table of bad rows by reason."""
        self.console.print(
            f"train: {len(train.clips)} utterances, {train.duration_s / 3600:.2f} h; "
            f"dev: {len(dev.clips)} utterances, {dev.duration_s / 60:.1f} min",
            highlight=False,
        )
        for label, corpus in (("train", train), ("dev", dev), ("test", test)):
            if not corpus.bad_rows:
                continue
            table = Table(
                title=f"{len(corpus.bad_rows)} bad {label} rows, listed in bad_rows.jsonl",
                title_justify="left",
            )
            table.add_column("reason")
            table.add_column("rows", justify="right")
            table.add_column("first")
            for reason, count in corpus.count_reasons().items():
                first = next(bad for bad in corpus.bad_rows if bad.reason == reason)
                table.add_row(reason, str(count), f"{first.source}:{first.row} {first.detail}"[:90])
            self.console.print(table)

    def show_step(self, row: dict[str, float | int], optim: OptimConfig) -> None:
        """Move the bar to `row`'s step, or print a line every log_every_steps."""
        text = (
            f"loss {row['loss']:.3f} ctc {row['ctc_loss']:.3f} lr {row['lr']:.2e} "
            f"{row['audio_s_per_s']:.0f} s/s epoch {row['epoch']}"
        )
        if not self.console.is_terminal:
            if int(row["step"]) % self._log_every == 0:
                self.console.print(f"step {row['step']} {row['minutes']:.1f} min {text}", highlight=False)
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, refresh_per_second=2)
            self._task = self._bar.add_task("step", total=optim.max_steps)
            self._bar.start()
        self._bar.update(self._task, completed=int(row["step"]), description=text)

    def show_scores(self, label: str, scores: dict[str, Scores]) -> None:
        """Print one line per evaluation."""
        if scores:
            text = "  ".join(f"{name} {_describe(score)}" for name, score in scores.items())
            self.console.print(f"{label}: {text}", highlight=False)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _describe(scores: Scores) -> str:
    text = f"WER {100 * scores.wer:.2f} % CER {100 * scores.cer:.2f} %"
    if scores.attention is not None:
        text += f" attention WER {100 * scores.attention.rates.wer:.2f} %"
    return f"{text} loss {scores.loss:.3f}"
