"""Tables that calibrate the confidence of words, in confidence.json of a bundle.

A table belongs to one model file, by its hash, and to one kind of search. The file stands beside bundle.json
and not in it: versions of edge-asr that know nothing of it read the bundle as before, and a bundle without it
has confidences as the decoder gives them. It is written in one go, and nothing else of the bundle is touched.
What this file does not do: fit a table (`edge_asr.confidence`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edge_asr.atomic import write_file
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.bundle.names import CONFIDENCE_NAME
from edge_asr.errors import BundleError
from edge_asr.records import json_from_record, read_json, record_from_json

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAX_BYTES = 1 << 20
_REMEDY = "delete it, or run edge-asr evaluate --calibrate-confidence again"

DecoderKind = Literal["greedy", "beam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceTable:
    """What makes the confidence of a word the probability that it is right.

    Attributes:
        precision: of the model file.
        model_sha256: hash of that file; the table says nothing about another one.
        decoder: the kind of search whose confidences it takes.
        raw, calibrated: knots; linear in between, constant outside.
        n_words: recognized words that it was fitted to.
        error_before, error_after: expected calibration error without and with a table, of words whose speaker
            was held out.
    """

    precision: Precision
    model_sha256: str
    decoder: DecoderKind
    raw: tuple[float, ...]
    calibrated: tuple[float, ...]
    n_words: int
    error_before: float
    error_after: float

    def __post_init__(self) -> None:
        if not self.raw or len(self.raw) != len(self.calibrated):
            raise BundleError(
                f"a table has {len(self.raw)} and {len(self.calibrated)} knots, which must be as many; "
                f"{_REMEDY}"
            )
        if any(not 0 <= value <= 1 for value in (*self.raw, *self.calibrated)):
            raise BundleError(f"a table has knots outside 0 to 1; {_REMEDY}")
        if any(a >= b for a, b in pairwise(self.raw)) or any(a > b for a, b in pairwise(self.calibrated)):
            raise BundleError(f"a table is not monotone; {_REMEDY}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceFile:
    """Content of confidence.json."""

    tables: tuple[ConfidenceTable, ...]
    format_version: int = FORMAT_VERSION


def read_tables(bundle: Bundle) -> tuple[ConfidenceTable, ...]:
    """Read all tables of a bundle; none if it has no file, or one of a later version, which is logged.

    Raises:
        BundleError: the file is damaged.
    """
    path = bundle.path / CONFIDENCE_NAME
    try:
        data = read_json(path, error=BundleError, remedy=_REMEDY, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return ()
    version = data.get("format_version") if isinstance(data, dict) else FORMAT_VERSION
    if isinstance(version, int) and version > FORMAT_VERSION:
        _log.warning("%s is of a later edge-asr (format %d): word confidences are as decoded", path, version)
        return ()
    return record_from_json(ConfidenceFile, data, str(path), error=BundleError, remedy=_REMEDY).tables


def find_table(bundle: Bundle, precision: str, decoder: str | None) -> ConfidenceTable | None:
    """Find the table of a model file and a kind of search; None without one, or if the model was replaced."""
    if decoder is None:
        return None
    for table in read_tables(bundle):
        if (table.precision, table.decoder) == (precision, decoder):
            if table.model_sha256 == bundle.artifact_behind(table.precision).sha256:
                return table
            _log.warning(
                "%s was made for another %s model: word confidences are as decoded; run edge-asr evaluate "
                "--calibrate-confidence again",
                bundle.path / CONFIDENCE_NAME,
                precision,
            )
    return None


def check_writable(bundle: Bundle) -> None:
    """Refuse a bundle that cannot be written, before any work.

    Raises:
        BundleError: it cannot.
    """
    if not os.access(bundle.path, os.W_OK | os.X_OK):
        raise BundleError(f"{bundle.path} cannot be written (no permission); calibrate a copy of it: cp -r")
    read_tables(bundle)


def write_table(bundle: Bundle, table: ConfidenceTable) -> None:
    """Put a table into a bundle, in the place of an earlier one of the same kind.

    Raises:
        BundleError: it cannot be written; the bundle is as it was.
    """
    kind = (table.precision, table.decoder)
    others = [old for old in read_tables(bundle) if (old.precision, old.decoder) != kind]
    path = bundle.path / CONFIDENCE_NAME
    content = json_from_record(ConfidenceFile(tables=_sorted([*others, table])))
    try:
        write_file(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise BundleError(
            f"{path} cannot be written ({error.strerror}); the bundle is as it was; calibrate a copy of it"
        ) from error


def _sorted(tables: Sequence[ConfidenceTable]) -> tuple[ConfidenceTable, ...]:
    return tuple(sorted(tables, key=lambda table: (table.precision, table.decoder)))
