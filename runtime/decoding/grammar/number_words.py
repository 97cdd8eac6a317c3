"""Numbers in English words: 23 is "twenty three", 105 is "one hundred [and] five".

What this file does not do: other languages, ordinals, fractions, digits said one by one.
"""

from __future__ import annotations

from edge_asr.runtime.decoding.grammar.expression import Choice, Expression, Sequence, Value, Word, optional

MAX_NUMBER = 999_999
MAX_VALUES = 10_000
"""Numbers in one range; each of them is a path of its own."""

# fmt: off
SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


def range_expression(first: int, last: int, line: int) -> Choice:
    """Make the choice among the numbers from `first` to `last`, each with its value."""
    return Choice(
        tuple(Sequence((*_spoken(number, line), Value(number))) for number in range(first, last + 1))
    )


def number_words(number: int) -> str:
    """Return the words of a number from 0 to `MAX_NUMBER`, without an "and"."""
    return " ".join(item.text for item in _spoken(number, 0) if isinstance(item, Word))


def _spoken(number: int, line: int) -> list[Expression]:
    def words(*texts: str) -> list[Expression]:
        return [Word(text, line) for text in texts]

    if number < 20:
        return words(SMALL[number])
    if number < 100:
        tens, ones = divmod(number, 10)
        return words(TENS[tens - 2], *([SMALL[ones]] if ones else []))
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = divmod(number, unit)
    spoken = [*_spoken(many, line), *words(name)]
    if rest and rest < 100:
        spoken.append(optional(Word("and", line)))
    return [*spoken, *(_spoken(rest, line) if rest else [])]
