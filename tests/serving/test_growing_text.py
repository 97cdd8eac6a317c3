"""What is appended never has to be taken back."""

from __future__ import annotations

from edge_asr.serving.growing_text import GrowingText


def test_the_last_word_of_a_partial_waits() -> None:
    text = GrowingText()
    assert [text.add_partial(part) for part in ("go", "go three", "go three meters")] == ["", "go", " three"]
    assert text.add_final("go three meters") == " meters"
    assert text.add_partial("and stop") == " and"
    assert text.add_final("and stop") == " stop"
    assert text.text == "go three meters and stop"


def test_what_changes_behind_itself_is_not_appended() -> None:
    text = GrowingText()
    assert text.add_partial("go tree me") == "go tree"
    assert text.add_partial("go three meters") == ""
    assert text.add_final("go three meters") == ""
    assert text.text == "go three meters"


def test_an_utterance_without_words_adds_nothing() -> None:
    text = GrowingText()
    assert text.add_final("") == ""
    assert text.add_final("stop") == "stop"
    assert text.text == "stop"
