"""Names as they are written become phrases that the model can spell, or are left out."""

from __future__ import annotations

import pytest

from edge_asr.runtime.decoding.hotwords import HotwordScorer, Spelling
from edge_asr.serving.options import MAX_HOTWORDS, hotword_from_text
from edge_asr.serving.spoken_names import hotwords_from_names
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary


def vocabulary_of(letters: str) -> Vocabulary:
    return Vocabulary(kind="char", tokens=("<blank>", *letters), blank_id=0)


LETTERS = vocabulary_of(WORD_BOUNDARY + "'abcdefghijklmnopqrstuvwxyz")
CAPITALS = vocabulary_of(WORD_BOUNDARY + "ABCDEFGHIJKLMNOPQRSTUVWXYZÜ")
UNSPACED = vocabulary_of("客厅灯")


@pytest.mark.parametrize(
    ("vocabulary", "name", "spoken"),
    [
        (LETTERS, "Living-Room Lamp", "living room lamp"),
        (LETTERS, "light_2 (kitchen): on", "light two kitchen on"),
        (LETTERS, "Lamp25", "lamp twenty five"),
        (LETTERS, "Anna’s Küche", "anna's kuche"),
        (LETTERS, "Лампа", None),
        (LETTERS, "lamp 12345678", None),
        (LETTERS, "!?", None),
        (LETTERS, "a" * 201, None),
        (CAPITALS, "Küche", "KÜCHE"),
        (CAPITALS, "Café", "CAFE"),
        (UNSPACED, "客厅 灯", "客厅灯"),
    ],
)
def test_a_name_is_spelled(vocabulary: Vocabulary, name: str, spoken: str | None) -> None:
    found = hotwords_from_names([name], [], Spelling(vocabulary), is_english=True)
    assert found == (() if spoken is None else (f"{spoken}:1.0",))
    if found:
        HotwordScorer([hotword_from_text(found[0])], vocabulary)  # takes it


def test_numbers_are_said_in_english_only() -> None:
    assert hotwords_from_names(["lampe 2"], ["lampe"], Spelling(LETTERS), is_english=False) == ("lampe:0.5",)


def test_names_count_more_than_terms_and_many_of_them_less() -> None:
    spelling = Spelling(LETTERS)
    found = hotwords_from_names(["lamp", "Lamp"], ["lamp", "watt"], spelling, is_english=True)
    assert found == ("lamp:1.0", "watt:0.5")
    many = [f"lamp {number}" for number in range(MAX_HOTWORDS)]
    found = hotwords_from_names(many, ["watt"], spelling, is_english=True)
    assert len(found) == MAX_HOTWORDS
    assert found[-1] == "lamp nine hundred ninety nine:0.5"
