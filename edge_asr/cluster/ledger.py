"""Knows every input of a run, which of them are finished, and how the others are shared out.

It is a table of SQLite in a temporary file, so that ten million inputs need disk and not memory. Shards
hold inputs of similar lengths, the longest first: similar ones share runs of the model, and at the end no
worker is alone with a long one.
What this file does not do: keep anything beyond the run; what is finished stands with the results (store.py).
"""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_asr.cluster.inputs import Input
from edge_asr.errors import ManifestError

UNKNOWN_S = 60.0
"""The length that an input of unknown length counts as."""
MAX_INPUTS = 4000
"""Most inputs of a shard, which bounds the rows that a worker holds."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Inputs that one worker transcribes, and whose rows become one file.

    Attributes:
        inputs: at least one.
        n_deaths: workers that died on them.
    """

    inputs: tuple[Input, ...]
    n_deaths: int = 0

    @property
    def seconds(self) -> float:
        """Return the length of its inputs, unknown ones as `UNKNOWN_S`."""
        return sum(one.duration_s or UNKNOWN_S for one in self.inputs)


class Ledger:
    """All inputs of a run; close it in the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-asr-")
        self._table = sqlite3.connect(Path(self._folder.name, "ledger"))
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute(
            "CREATE TABLE input (id TEXT PRIMARY KEY, place TEXT, duration REAL, problem TEXT, "
            "done INTEGER DEFAULT 0) WITHOUT ROWID"
        )

    def add(self, inputs: Iterable[Input]) -> None:
        """Add inputs.

        Raises:
            ManifestError: two have the same id.
        """
        add = "INSERT INTO input (id, place, duration, problem) VALUES (?, ?, ?, ?)"
        for one in inputs:
            try:
                self._table.execute(add, (one.id, one.place, one.duration_s, one.problem))
            except sqlite3.IntegrityError as error:
                raise ManifestError(
                    f'two inputs have the id {one.id!r}; give each row of the manifest an "id" of its own'
                ) from error

    def finish(self, ids: Iterable[str]) -> None:
        """Note inputs as finished; ids of others are ignored."""
        self._table.executemany("UPDATE input SET done = 1 WHERE id = ?", ((one,) for one in ids))

    def count(self, *, done: bool) -> tuple[int, float]:
        """Return how many inputs are, or are not, finished, and their seconds."""
        rows = self._table.execute(
            "SELECT count(*), total(CASE WHEN duration > 0 THEN duration ELSE ? END) FROM input "
            "WHERE done = ?",
            (UNKNOWN_S, int(done)),
        )
        n_inputs, seconds = rows.fetchone()
        return int(n_inputs), float(seconds)

    def plan(self, shard_s: float, max_inputs: int = MAX_INPUTS) -> Iterator[Shard]:
        """Share out what is not finished, in shards of at most so much, or of one input."""
        rows = self._table.execute(
            "SELECT id, place, duration, problem FROM input WHERE NOT done ORDER BY duration DESC, id"
        )
        inputs: list[Input] = []
        seconds = 0.0
        for name, place, duration_s, problem in itertools.chain(rows, [(None, "", 0.0, "")]):
            length_s = duration_s or UNKNOWN_S
            full = seconds + length_s > shard_s or len(inputs) >= max_inputs
            if inputs and (full or name is None):
                yield Shard(tuple(inputs))
                inputs, seconds = [], 0.0
            if name is not None:
                inputs.append(Input(id=name, place=place, duration_s=duration_s, problem=problem))
                seconds += length_s

    def close(self) -> None:
        """Remove the table."""
        self._table.close()
        self._folder.cleanup()
