"""Tables whose cells cannot break them, and blocks that do not run into each other."""

from __future__ import annotations

import pytest

from edge_asr.markdown import markdown_document, markdown_table


def test_first_column_holds_labels_unless_told() -> None:
    rows = [("a", "1", "2"), ("b", "3", "4")]
    assert markdown_table(("name", "x", "y"), rows) == [
        "| name | x | y |",
        "|---|---:|---:|",
        "| a | 1 | 2 |",
        "| b | 3 | 4 |",
    ]
    assert markdown_table(("name", "x", "y"), rows, "rrl")[1] == "|---:|---:|---|"


def test_cells_cannot_break_the_table() -> None:
    assert markdown_table(("a",), [("x|y\nz",)])[2] == "| x\\|y z |"


@pytest.mark.parametrize("align", ["l", "lrr", "lc"])
def test_alignment_is_one_known_letter_a_column(align: str) -> None:
    with pytest.raises(ValueError, match=f"align is '{align}'"):
        markdown_table(("a", "b"), [], align)


def test_rows_have_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="has 1 cells"):
        markdown_table(("a", "b"), [("x", "1"), ("y",)])


def test_blocks_are_apart_and_empty_ones_left_out() -> None:
    text = markdown_document(["# Title", [], "", "Words.", markdown_table(("a",), [("1",)])])
    assert text == "# Title\n\nWords.\n\n| a |\n|---|\n| 1 |\n"
