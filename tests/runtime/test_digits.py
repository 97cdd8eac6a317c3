"""Digits in the place of number words: a table of what is written, and of what must stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.runtime.decoding.grammar.number_words import number_words
from edge_asr.runtime.digits import write_digits, write_transcript_digits
from edge_asr.runtime.transcript import Transcript, Word, split_segments

CHANGED = {
    "wait twenty three seconds": "wait 23 seconds",
    "turn left ninety degrees": "turn left 90\N{DEGREE SIGN}",
    "it is minus five degrees celsius": "it is -5\N{DEGREE SIGN}C",
    "set the oven to two hundred degrees fahrenheit": "set the oven to 200\N{DEGREE SIGN}F",
    "go forward three meters": "go forward 3 m",
    "go one meter back": "go 1 m back",
    "lower the arm by twelve millimeters": "lower the arm by 12 mm",
    "two hundred and five": "205",
    "a hundred people": "100 people",
    "a thousand times": "1000 times",
    "one hundred twenty": "120",
    "two thousand twenty six": "2026",
    "two thousand and six people": "2006 people",
    "twelve thousand three hundred forty five": "12345",
    "nine hundred ninety nine thousand nine hundred ninety nine": "999999",
    "three million people": "3 million people",
    "two point five billion": "2.5 billion",
    "nineteen eighty four": "1984",
    "in nineteen oh five": "in 1905",
    "twenty twenty six": "2026",
    "one two three": "123",
    "x h b a c five three four four": "x h b a c 5344",
    "call five five five oh one nine nine": "call 5550199",
    "oh eight oh three": "0803",
    "enter seven two one six": "enter 7216",
    "the code is nine oh two one oh": "the code is 90210",
    "room one twenty three": "room 123",
    "eight forty one": "841",
    "rubout d q t w x five hundred eighty seven": "rubout d q t w x 587",
    "three point one four": "3.14",
    "three point fourteen": "3.14",
    "zero point two five volts": "0.25 V",
    "fifty percent": "50%",
    "five percent of it": "5% of it",
    "three point five per cent": "3.5%",
    "five dollars": "$5",
    "it costs twenty dollars and fifty cents": "it costs $20.50",
    "five dollars and five cents": "$5.05",
    "ten euros": "\N{EURO SIGN}10",
    "fifty cents": "50 cents",
    "two million dollars": "$2 million",
    "wake me at seven thirty": "wake me at 7:30",
    "wake me at seven oh five": "wake me at 7:05",
    "the train leaves at twelve fifteen p m": "the train leaves at 12:15 pm",
    "call me at five pm": "call me at 5 pm",
    "seven o'clock": "7 o'clock",
    "seven a m": "7 am",
    "may twenty first nineteen sixty": "may 21 1960",
    "july twenty nine nineteen sixty nine": "july 29 1969",
    "september sixth nineteen sixty seven": "september 6 1967",
    "on may second": "on may 2",
    "march fifth two thousand six": "march 5 2006",
    "december twenty fifth": "december 25",
    "june three": "june 3",
    "the twenty first century": "the 21st century",
    "the twelfth of june": "the 12th of june",
    "the thirteenth and the twenty second": "the 13th and the 22nd",
    "twenty and thirty": "20 and 30",
    "twelve twenty one fifty eight": "12 21 58",
    "sixty miles per hour": "60 mph",
    "ten kilometers per hour": "10 km/h",
    "two minutes": "2 minutes",
    "one hundred and one dalmatians": "101 dalmatians",
    "eleven": "11",
}
UNCHANGED = (
    "",
    "no one knows",
    "one of them",
    "one by one",
    "give me a second",
    "one second please",
    "the second door",
    "first things first",
    "you may second the motion",
    "it may one day rain",
    "we may march on",
    "march two by two",
    "to be or not to be for a while",
    "for two",
    "too good to be true",
    "i ate a pear",
    "he won the race",
    "oh no",
    "oh i see",
    "a hundredth part",
    "hundreds of people",
    "thousands of them",
    "at this point we stop",
    "the point is",
    "that is a minus",
    "a few dollars and cents",
    "three",
    "two doors",
    "point five out",
    "i",
    "what time is it",
    "half past seven",
    "the first of may",
    "a quarter to five",
    "percent",
    "someone anyone tenderly",
)


@pytest.mark.parametrize(("said", "written"), CHANGED.items())
def test_numbers_are_written_with_digits(said: str, written: str) -> None:
    assert write_digits(said) == written


@pytest.mark.parametrize("said", UNCHANGED)
def test_other_words_stay(said: str) -> None:
    assert write_digits(said) == said


@given(number=st.integers(10, 999_999))
def test_every_number_is_read_back(number: int) -> None:
    said = number_words(number)
    assert write_digits(f"take {said} of them") == f"take {number} of them"


def test_what_words_become_has_their_times() -> None:
    texts = ["wait", "twenty", "three", "seconds", "please"]
    words = tuple(
        Word(text=text, start_s=float(i), end_s=i + 0.5, confidence=0.9 - 0.1 * i)
        for i, text in enumerate(texts)
    )
    transcript = Transcript(
        text=" ".join(texts), tokens=(), words=words, segments=split_segments(words), duration_s=5.0
    )
    written = write_transcript_digits(transcript)
    assert written.text == "wait 23 seconds please"
    assert [(w.text, w.start_s, w.end_s) for w in written.words] == [
        ("wait", 0.0, 0.5),
        ("23 seconds", 1.0, 3.5),
        ("please", 4.0, 4.5),
    ]
    assert written.words[1].confidence == pytest.approx(0.6)
    assert [segment.text for segment in written.segments] == ["wait 23 seconds please"]
