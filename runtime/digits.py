"""Writes numbers, dates, times, money and units of English text with digits: "twenty three meters" is "23 m".

A rule table over words, off unless asked for. Times survive: what several words become begins with the first
and ends with the last. A lone "one" to "nine" stays a word unless a unit, "percent" or an "a m" says that it
counts. Two or more digits in a row are one number, as telephone numbers and codes are said ("one two three"
is 123, with "oh" as 0). "first" to "ninth", "second", "may", "to", "for" and "a" stay, but for dates.
What this file does not do: other languages, fractions, roman numerals, capitals and punctuation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from edge_asr.runtime.decoding.grammar.number_words import SMALL, TENS
from edge_asr.runtime.live.events import Event, Final, Partial
from edge_asr.runtime.transcript import Transcript, Word, split_segments

_ORDINAL_WORDS = """
first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth
"""
_MONTH_WORDS = "january february march april may june july august september october november december"
_PRONOUN_WORDS = "i you he she it we they who that this to"
_UNIT_TABLE = """
percent=% | per cent=% | degree=° | degrees=° | degrees celsius=°C | degrees fahrenheit=°F | cents= cents
meter= m | meters= m | millimeter= mm | millimeters= mm | centimeter= cm | centimeters= cm | kilometer= km
kilometers= km | miles per hour= mph | kilometers per hour= km/h | meters per second= m/s | miles= miles
inches= inches | feet= feet | grams= g | kilogram= kg | kilograms= kg | milligrams= mg | liter= l | liters= l
volts= V | watts= W | kilowatts= kW | hertz= Hz | kilohertz= kHz | megahertz= MHz | milliseconds= ms
seconds= seconds | minutes= minutes | hours= hours | days= days | weeks= weeks | months= months | years= years
"""

_DIGITS = {word: n for n, word in enumerate(SMALL[:10])}
_TEENS = {word: n for n, word in enumerate(SMALL) if n >= 10}
_TENS = {word: 10 * n for n, word in enumerate(TENS, start=2)}
_ORDINALS = {word: n for n, word in enumerate(_ORDINAL_WORDS.split(), start=1)} | {"thirtieth": 30}
_MONTHS, _PRONOUNS = frozenset(_MONTH_WORDS.split()), frozenset(_PRONOUN_WORDS.split())
#: Months that are other words too: only a date with an ordinal and no pronoun before, or with a year, is one.
_VERBS = {"may", "march"}
_LARGE = ("million", "billion")
_UNITS = {
    name.strip(): unit.rstrip()
    for line in _UNIT_TABLE.split("\n")
    for name, _, unit in (entry.partition("=") for entry in line.split("|"))
    if unit
}
_MONEY = {"dollars": "$", "dollar": "$", "euros": "\N{EURO SIGN}", "euro": "\N{EURO SIGN}"}


@dataclass(frozen=True, slots=True)
class _Number:
    """A number: the place behind it, its text, and whether it is a digit, a pair (10 to 99) or long."""

    last: int
    text: str
    kind: str


def write_digits(text: str) -> str:
    """Return a text with digits; words are separated by spaces."""
    words = text.split()
    return " ".join(written for _, _, written in _spans(words))


def write_transcript_digits(transcript: Transcript) -> Transcript:
    """Return a transcript whose text, words and segments have digits; tokens stay as the model gave them."""
    words = write_word_digits(transcript.words)
    return dataclasses.replace(
        transcript, text=" ".join(w.text for w in words), words=words, segments=split_segments(words)
    )


def write_word_digits(words: Sequence[Word]) -> tuple[Word, ...]:
    """Return words with digits; what several become has their times and the lowest of their confidences."""
    return tuple(
        Word(
            text=text,
            start_s=words[first].start_s,
            end_s=words[last - 1].end_s,
            confidence=min(word.confidence for word in words[first:last]),
        )
        for first, last, text in _spans([word.text for word in words])
    )


def write_event_digits(event: Event) -> Event:
    """Return an event of live recognition with digits in its text and words."""
    if isinstance(event, Final):
        words = write_word_digits(event.words)
        return dataclasses.replace(event, text=" ".join(word.text for word in words), words=words)
    if isinstance(event, Partial):
        return dataclasses.replace(event, text=write_digits(event.text))
    return event


def _spans(words: Sequence[str]) -> list[tuple[int, int, str]]:
    """Cut words into [first, last) and what is written for them."""
    spans: list[tuple[int, int, str]] = []
    place = 0
    while place < len(words):
        found = _date(words, place) or _ordinal(words, place) or _quantity(words, place)
        last, text = found or (place + 1, words[place])
        spans.append((place, last, text))
        place = last
    return spans


def _at(words: Sequence[str], place: int) -> str:
    return words[place] if 0 <= place < len(words) else ""


def _pair(words: Sequence[str], place: int) -> _Number | None:
    """Read 10 to 99."""
    word = _at(words, place)
    if word in _TEENS:
        return _Number(place + 1, str(_TEENS[word]), "pair")
    if word in _TENS:
        ones = _DIGITS.get(_at(words, place + 1), 0)
        return _Number(place + 1 + bool(ones), str(_TENS[word] + ones), "pair")
    return None


def _small(words: Sequence[str], place: int) -> _Number | None:
    """Read 0 to 99."""
    digit = _DIGITS.get(_at(words, place))
    return _pair(words, place) if digit is None else _Number(place + 1, str(digit), "digit")


def _cardinal(words: Sequence[str], place: int) -> _Number | None:
    """Read a number with its hundreds, thousands and millions, or without any."""
    begin = place
    if _at(words, place) in ("a", "an") and _at(words, place + 1) in ("hundred", "thousand"):
        words = [*words[:place], "one", *words[place + 1 :]]
    total, kind = 0, "long"
    for scale in (1000, 1):
        part = _small(words, place)
        if part is None:
            break
        value, after = int(part.text), part.last
        if _at(words, after) == "hundred" and value:
            value, after = value * 100, after + 1
            joint = after + (_at(words, after) == "and")
            rest = _small(words, joint)
            if rest is not None and rest.text != "0":
                value, after = value + int(rest.text), rest.last
        elif place == begin:
            kind = part.kind
        if scale == 1000 and _at(words, after) == "thousand" and value:
            total, place, kind = value * 1000, after + 1, "long"
            joint = place + (_at(words, place) == "and")
            if _small(words, joint) is None:
                break
            place = joint
        elif scale == 1000:
            return _more(words, _Number(after, str(value), kind))
        else:
            total, place = total + value, after
    return None if place == begin else _more(words, _Number(place, str(total), kind))


def _more(words: Sequence[str], number: _Number) -> _Number:
    """Add decimals, and keep a million as a word."""
    place = number.last
    if _at(words, place) == "point":
        digits, place = "", place + 1
        while (digit := _digit(words, place)) is not None:
            digits, place = digits + digit, place + 1
        pair = None if digits else _pair(words, place)
        digits, place = (pair.text, pair.last) if pair else (digits, place)
        if digits:
            number = _Number(place, f"{number.text}.{digits}", "long")
    if _at(words, number.last) in _LARGE:
        return _Number(number.last + 1, f"{number.text} {words[number.last]}", "long")
    return number


def _digit(words: Sequence[str], place: int) -> str | None:
    word = _at(words, place)
    return "0" if word == "oh" else None if word not in _DIGITS else str(_DIGITS[word])


def _quantity(words: Sequence[str], place: int) -> tuple[int, str] | None:
    """Read numbers with what belongs to them: a sign, a unit, money, a time of day; or several in a row."""
    sign = "-" if _at(words, place) == "minus" and _small(words, place - 1) is None else ""
    if sign and not _small(words, place - 1):
        place += 1
    groups: list[_Number] = []
    last = place
    while (number := _group(words, last, bool(groups))) is not None:
        groups.append(number)
        last = number.last
    if not groups:
        return None
    texts, kinds = [group.text for group in groups], [group.kind for group in groups]
    clock = _clock(words, groups)
    if clock is not None and not sign:
        return clock
    joined = " ".join(texts)
    if len(groups) > 1 and (kinds[0] == "digit" or _is_year(groups)) and "long" not in kinds:
        joined = "".join(texts)
    if len(groups) == 1 or kinds[-1] != "digit":
        money = _MONEY.get(_at(words, last))
        if money is not None and len(groups) == 1:
            return _money(words, last + 1, sign + money + joined)
        for n_words in (3, 2, 1):
            unit = _UNITS.get(" ".join(words[last : last + n_words]))
            if unit is not None and last + n_words <= len(words):
                return last + n_words, sign + joined + unit
    if kinds == ["digit"] and not (sign and texts != ["0"]):
        return None
    return last, sign + joined


def _group(words: Sequence[str], place: int, is_within: bool) -> _Number | None:
    if _at(words, place) == "oh" and (is_within or _small(words, place + 1) is not None):
        return _Number(place + 1, "0", "digit")
    return _cardinal(words, place)


def _is_year(groups: Sequence[_Number]) -> bool:
    """Tell whether the groups are as "nineteen eighty four", or "nineteen oh five", are."""
    texts = [group.text for group in groups]
    return texts[0] in ("16", "17", "18", "19", "20") and (
        [len(text) for text in texts] == [2, 2]
        or (len(texts) == 3 and texts[1] == "0" and len(texts[2]) == 1)
    )


def _clock(words: Sequence[str], groups: Sequence[_Number]) -> tuple[int, str] | None:
    """Read "seven thirty p m", "seven o'clock", "at seven thirty"."""
    last, begin = groups[-1].last, groups[0].last - 1
    texts = [group.text for group in groups]
    if not (texts[0].isdigit() and 1 <= int(texts[0]) <= 12):
        return None
    if len(texts) == 3 and texts[1] == "0":
        texts = [texts[0], "0" + texts[2]]
    is_clock = len(texts) == 2 and len(texts[1]) == 2 and texts[1].isdigit() and int(texts[1]) < 60
    half = {"am": 1, "pm": 1}.get(_at(words, last), 2 * (" ".join(words[last : last + 2]) in ("a m", "p m")))
    if half and (is_clock or len(texts) == 1):
        return last + half, ":".join(texts) + " " + "".join(words[last : last + half])
    if _at(words, last) == "o'clock" and len(texts) == 1:
        return last + 1, f"{texts[0]} o'clock"
    is_told = _at(words, begin - 1) in ("at", "until", "by") and _at(words, last) not in _UNITS
    return (last, ":".join(texts)) if is_clock and is_told and groups[0].kind != "long" else None


def _money(words: Sequence[str], place: int, text: str) -> tuple[int, str]:
    """Add the cents."""
    joint = place + (_at(words, place) == "and")
    cents = _small(words, joint)
    if cents is not None and _at(words, cents.last) in ("cents", "cent"):
        return cents.last + 1, f"{text}.{int(cents.text):02d}"
    return place, text


def _ordinal_number(words: Sequence[str], place: int) -> tuple[int, int] | None:
    """Read 1st to 99th: the place behind it, and the number."""
    word, after = _at(words, place), _ORDINALS.get(_at(words, place + 1), 99)
    if word in _TENS and after < 10:
        return place + 2, _TENS[word] + after
    return (place + 1, _ORDINALS[word]) if word in _ORDINALS else None


def _ordinal(words: Sequence[str], place: int) -> tuple[int, str] | None:
    """Read an ordinal from 10th on; the smaller ones are words of many uses."""
    found = _ordinal_number(words, place)
    if found is None or found[1] < 10:
        return None
    last, number = found
    ending = "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return last, f"{number}{ending}"


def _date(words: Sequence[str], place: int) -> tuple[int, str] | None:
    """Read a month, a day, and a year if there is one."""
    month = words[place]
    if month not in _MONTHS:
        return None
    day = _ordinal_number(words, place + 1)
    is_ordinal = day is not None
    if day is None:
        plain = _small(words, place + 1)
        day = None if plain is None else (plain.last, int(plain.text))
    if day is None or not 1 <= day[1] <= 31:
        return None
    last, text = day[0], f"{month} {day[1]}"
    year = _year(words, last)
    if month in _VERBS and year is None and not (is_ordinal and _at(words, place - 1) not in _PRONOUNS):
        return None
    if year is None and any(" ".join(words[last : last + n]) in _UNITS for n in (1, 2, 3)):
        return None
    return (last, text) if year is None else (year[0], f"{text} {year[1]}")


def _year(words: Sequence[str], place: int) -> tuple[int, str] | None:
    """Read a year from 1600 to 2099."""
    first = _pair(words, place)
    if first is not None and first.text in ("16", "17", "18", "19", "20"):
        second = _pair(words, first.last)
        if second is not None:
            return second.last, first.text + second.text
        if _at(words, first.last) == "oh" and (digit := _digit(words, first.last + 1)):
            return first.last + 2, f"{first.text}0{digit}"
    number = _cardinal(words, place)
    is_year = number is not None and number.text.isdigit() and 1600 <= int(number.text) <= 2099
    return (number.last, number.text) if number is not None and is_year else None
