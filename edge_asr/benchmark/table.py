"""Formats a table of results: on a terminal, as plain text in a file, and as Markdown.

What this file does not do: choose what is in a table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_asr.markdown import markdown_table
from edge_asr.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

#: Width of tables that do not go to a terminal.
PLAIN_WIDTH = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table: heading, column names, rows of cells, and notes below it.

    Attributes:
        n_labels: so many columns on the left are words; the others are numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    n_labels: int = 1

    def markdown(self) -> Iterator[list[str]]:
        """Return blocks of Markdown: heading, table, notes."""
        align = "l" * self.n_labels + "r" * (len(self.columns) - self.n_labels)
        yield [f"## {self.title}"]
        yield markdown_table(self.columns, self.rows, align)
        for note in self.notes:
            yield [note]


def make_console() -> Console:
    """Return standard output, as plain text of a fixed width if it is not a terminal."""
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console() if is_terminal else Console(width=PLAIN_WIDTH)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print each on one line, however long."""
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """Print the table; labels that repeat from the row above are left out, so that groups are visible."""
    from rich import box
    from rich.table import Table as RichTable

    drawn = RichTable(
        title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if index < table.n_labels else "right", overflow="fold")
    last: tuple[str, ...] = ()
    for row in table.rows:
        same = 0
        while same < table.n_labels - 1 and row[: same + 1] == last[: same + 1]:
            same += 1
        drawn.add_row(*("" if index < same else printable(cell) for index, cell in enumerate(row)))
        last = row
    console.print(drawn, highlight=False, markup=False)
    print_lines(table.notes, console)
    if table.notes:
        console.print()
