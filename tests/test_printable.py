"""Names of files on one line and in JSON: nothing that a terminal obeys, nothing lost."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.printable import json_line, printable

NAMES = st.binary(max_size=12).map(os.fsdecode) | st.text(st.characters(), max_size=12)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("naïve 日本語 🎤.wav", "naïve 日本語 🎤.wav"),
        ("a\nb\tc\x1b[2J", "a\\nb\\tc\\x1b[2J"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\x9b31m\u202egpj\u2028", "\\x9b31m\\u202egpj\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_shown(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(NAMES)
def test_any_name_is_one_line_that_every_terminal_takes(name: str) -> None:
    shown = printable(name)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    shown.encode()
    assert printable(shown) == shown


@given(NAMES)
def test_json_is_utf8_on_one_line_and_gives_the_name_back(name: str) -> None:
    line = json_line({name: [name]})
    assert len(line.encode().decode().splitlines()) == 1
    assert json.loads(line) == {name: [name]}
