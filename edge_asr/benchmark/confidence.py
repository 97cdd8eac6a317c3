"""Judges the confidence of words on a manifest, and makes the table that calibrates it.

What this file does not do: recognize, fit (`edge_asr.confidence`), keep a table
(`edge_asr.bundle.confidence`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_asr.atomic import writing_file
from edge_asr.benchmark.table import Table
from edge_asr.bundle.confidence import ConfidenceTable
from edge_asr.confidence import (
    BoolArray,
    FloatArray,
    ReliabilityBin,
    calibration_error,
    cross_validate,
    fit_monotone,
    reliability,
)
from edge_asr.errors import ConfigError, require
from edge_asr.manifest import Utterance
from edge_asr.metrics import find_right_words
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import Word

if TYPE_CHECKING:
    from edge_asr.bundle.manifest import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedWords:
    """All words recognized in a set.

    Attributes:
        confidences: [n] of the words.
        is_right: [n].
        speakers: [n] of the utterance; its own id where it names none, or all name one.
    """

    confidences: FloatArray
    is_right: BoolArray
    speakers: tuple[str, ...]


def judge_words(
    utterances: Sequence[Utterance], words: Sequence[Sequence[Word]], normalization: str
) -> JudgedWords:
    """Find which of the words recognized in each utterance are right."""
    by_speaker = len({u.speaker for u in utterances}) > 1
    confidences: list[float] = []
    is_right: list[bool] = []
    speakers: list[str] = []
    for index, (utterance, heard) in enumerate(zip(utterances, words, strict=True)):
        confidences += [word.confidence for word in heard]
        texts = [word.text for word in heard]
        is_right += find_right_words(utterance.text, texts, normalization=normalization)
        speakers += [(by_speaker and utterance.speaker) or f"clip {index}"] * len(heard)
    return JudgedWords(
        confidences=np.array(confidences, np.float64),
        is_right=np.array(is_right, np.bool_),
        speakers=tuple(speakers),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceReport:
    """How well confidences are calibrated.

    Attributes:
        name: what the confidences are, for people.
        n_words: words recognized.
        error: expected calibration error.
        bins: of words by confidence.
    """

    name: str
    n_words: int
    error: float
    bins: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict ready for JSON."""
        bins = [{key: round(value, 6) for key, value in dataclasses.asdict(one).items()} for one in self.bins]
        return {"n_words": self.n_words, "ece": round(self.error, 6), "bins": bins}


def report_confidence(name: str, confidences: FloatArray, is_right: BoolArray) -> ConfidenceReport:
    """Report on the confidences of words.

    Raises:
        ConfigError: there are no words.
    """
    if not len(confidences):
        raise ConfigError("no word was recognized, so there is no confidence to judge; give other speech")
    return ConfidenceReport(
        name=name,
        n_words=len(confidences),
        error=calibration_error(confidences, is_right),
        bins=reliability(confidences, is_right),
    )


def calibrate(
    recognizer: Recognizer, judged: JudgedWords
) -> tuple[ConfidenceTable, ConfidenceReport, ConfidenceReport]:
    """Make the table of a recognizer's precision and decoder from words with confidences as decoded.

    Returns:
        The table, fitted to all words, and reports before, and after by tables fitted to the other half.

    Raises:
        ConfigError: no bundle, a decoder whose confidences have no table, or too few words.
    """
    bundle, kind = recognizer.bundle, recognizer.decoder_kind
    if bundle is None or kind not in ("greedy", "beam"):
        raise ConfigError(
            "confidences are calibrated for greedy and beam search on a bundle; leave the grammar out"
        )
    corrected = cross_validate(judged.confidences, judged.is_right, judged.speakers)
    before = report_confidence("as decoded", judged.confidences, judged.is_right)
    after = report_confidence("calibrated, held out", corrected, judged.is_right)
    raw, calibrated = fit_monotone(judged.confidences, judged.is_right)
    precision = cast("Precision", recognizer.backend.precision)
    table = ConfidenceTable(
        precision=precision,
        model_sha256=bundle.artifact_behind(precision).sha256,
        decoder="greedy" if kind == "greedy" else "beam",
        raw=tuple(round(value, 6) for value in raw.tolist()),
        calibrated=tuple(round(value, 6) for value in calibrated.tolist()),
        n_words=len(judged.confidences),
        error_before=round(before.error, 6),
        error_after=round(after.error, 6),
    )
    return table, before, after


def reliability_table(report: ConfidenceReport) -> Table:
    """Format the reliability diagram as a table."""
    rows = tuple(
        (
            f"{one.low:.1f} to {one.high:.1f}",
            str(one.n_words),
            f"{one.confidence:.3f}",
            f"{one.right:.3f}",
            "#" * round(30 * one.right),
        )
        for one in report.bins
    )
    return Table(
        title=f"confidence {report.name}: {report.n_words} words, calibration error {report.error:.4f}",
        columns=("confidence", "words", "mean", "right", "share right"),
        rows=rows,
    )


def write_reliability_plot(reports: Sequence[ConfidenceReport], path: Path) -> None:
    """Plot reliability diagrams as PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="black", lw=0.8)
    for report in reports:
        label = f"{report.name}: error {report.error:.3f}"
        axes.plot([b.confidence for b in report.bins], [b.right for b in report.bins], "o-", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean confidence", ylabel="share of words that are right")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with writing_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
