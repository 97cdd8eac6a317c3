"""Formats Markdown for every report: tables, and blocks with empty lines between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    """Format the lines of a table.

    Args:
        columns: the heading of each column.
        rows: cells as text, one for each column; a "|" in one is escaped, a line break becomes a space.
        align: a letter for each column, "l" for labels and "r" for numbers; if empty, the first column has
            labels and the others have numbers.

    Raises:
        ValueError: a row or `align` has another length than `columns`, or a letter is unknown.
    """
    align = align or "l" + "r" * (len(columns) - 1)
    if len(align) != len(columns) or set(align) - set("lr"):
        raise ValueError(f"align is {align!r}; it must have one of l and r for each of {list(columns)}")
    lines = [_row(columns), "|" + "|".join("---" if side == "l" else "---:" for side in align) + "|"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {list(row)} has {len(row)} cells; the columns are {list(columns)}")
        lines.append(_row(row))
    return lines


def markdown_document(blocks: Iterable[str | Sequence[str]]) -> str:
    """Join headings, paragraphs, lists and tables, with an empty line between them.

    Args:
        blocks: each a single line or several that belong together; an empty one is left out.
    """
    texts = [block if isinstance(block, str) else "\n".join(block) for block in blocks]
    return "\n\n".join(text for text in texts if text) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.splitlines()).replace("|", "\\|") for cell in cells) + " |"
