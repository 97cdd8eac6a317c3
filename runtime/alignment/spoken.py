"""Says written English: digits, money, times and symbols as words, in every usual way.

`say("$1,250")` has "one thousand two hundred fifty dollars", and with "and". Numbers beyond 999 billion are
said digit by digit. What this file does not do: other languages, roman numerals, abbreviations.
"""

from __future__ import annotations

import itertools
import re

from edge_asr.runtime.decoding.grammar.number_words import number_words

MAX_READINGS = 24
"""Readings of one written word at most; each of them is a path of its own."""

_SYMBOLS = {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "°": "degrees"}
_MONEY = {"$": ("dollar", "cent", "cents"), "€": ("euro", "cent", "cents"), "£": ("pound", "penny", "pence")}
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_UNITS = ((10**9, "billion"), (10**6, "million"))
_PART = re.compile(
    r"(?P<money>[$€£])(?P<amount>\d[\d,]*)(?:\.(?P<cents>\d\d)(?!\d))?"
    r"|(?P<hour>\d{1,2}):(?P<minute>\d\d)(?!\d)"
    r"|(?P<ordinal>\d[\d,]*)(?:st|nd|rd|th)\b"
    r"|(?P<decade>\d+0)'?s\b"
    r"|(?P<minus>(?<![\w.])-)?(?P<whole>\d[\d,]*)?(?:\.(?P<fraction>\d+))?(?<=\d)"
    r"|(?P<word>'?[^\W\d_]+(?:'[^\W\d_]+)*'?)"
    r"|(?P<symbol>[&%+=@°])",
    re.IGNORECASE,
)


def say(written: str) -> list[list[str]]:
    """Say a written word: phrases of spoken words, the most usual first; [] if it has no sound."""
    parts = [_say_part(match) for match in _PART.finditer(written) if match[0]]
    phrases = itertools.islice(itertools.product(*parts), MAX_READINGS) if parts else ()
    return [" ".join(phrase).split() for phrase in phrases]


def _say_part(match: re.Match[str]) -> list[str]:
    group = match.groupdict()
    if group["word"]:
        word = group["word"]
        return list(dict.fromkeys((word, word.strip("'"))))
    if group["symbol"]:
        return [_SYMBOLS[group["symbol"]]]
    if group["money"]:
        return _say_money(_MONEY[group["money"]], _integer(group["amount"]), int(group["cents"] or 0))
    if group["hour"]:
        return _say_time(int(group["hour"]), int(group["minute"]))
    if group["ordinal"]:
        return [_ordinal(words) for words in _cardinals(_integer(group["ordinal"]))]
    if group["decade"]:
        return [re.sub("y$", "ie", words) + "s" for words in _years(group["decade"])]
    sign = "minus " if group["minus"] else ""
    whole, fraction = group["whole"], group["fraction"]
    if fraction:
        wholes = ["zero", ""] if not whole else _cardinals(_integer(whole))
        return [f"{sign}{words} point {digits}" for words in wholes for digits in _digits(fraction)]
    return [sign + words for words in _numbers(whole)]


def _integer(digits: str) -> int:
    return int(digits.replace(",", ""))


def _numbers(written: str) -> list[str]:
    """All ways to say a whole number."""
    digits = written.replace(",", "")
    if digits.startswith("0") and len(digits) > 1:
        return _digits(digits)
    ways = [*_cardinals(int(digits)), *(_years(digits) if len(digits) == 4 and "," not in written else ())]
    if len(digits) == 3 and digits[1:] != "00":  # room 305: three oh five; flight 714: seven fourteen
        ways.append(f"{number_words(int(digits[0]))} {_pair(digits[1:])}")
    return list(dict.fromkeys((*ways, *_digits(digits))))


def _cardinals(number: int) -> list[str]:
    """A number in words, without and with "and"; digit by digit if it is too large."""
    if number >= 1000 * _UNITS[0][0]:
        return _digits(str(number))
    words, rest = [], number
    for size, name in _UNITS:
        if rest >= size:
            words += [number_words(rest // size), name]
            rest %= size
    plain = " ".join((*words, *([number_words(rest)] if rest or not words else [])))
    joined = re.sub(r"hundred (?!thousand|million|billion)", "hundred and ", plain)
    if number > 1000 and 0 < number % 1000 < 100:
        joined = re.sub(r"(.*(?:thousand|million|billion)) ", r"\1 and ", joined)
    ways = [plain, joined]
    if 100 <= number < 2000 and (number < 200 or 1000 <= number < 1100):
        ways.append(re.sub("^one ", "a ", joined))
    return list(dict.fromkeys(ways))


def _years(digits: str) -> list[str]:
    """1984 as "nineteen eighty four", 1900 as "nineteen hundred", 1905 as "nineteen oh five"."""
    number = int(digits)
    if len(digits) != 4 or number < 1000 or digits[1:] == "000":
        return _cardinals(number)
    century = number_words(number // 100)
    if number % 100 == 0:
        return [f"{century} hundred"]
    return [f"{century} {_pair(digits[2:])}", f"{century} hundred {number_words(number % 100)}"]


def _pair(digits: str) -> str:
    return number_words(int(digits)) if digits[0] != "0" else f"oh {number_words(int(digits))}"


def _digits(digits: str) -> list[str]:
    words = " ".join(number_words(int(digit)) for digit in digits)
    return [words, words.replace("zero", "oh")] if "0" in digits else [words]


def _ordinal(words: str) -> str:
    before, _, last = words.rpartition(" ")
    changed = _ORDINALS.get(last) or re.sub("y$", "ie", last) + "th"
    return f"{before} {changed}".strip()


def _say_time(hour: int, minute: int) -> list[str]:
    words = number_words(hour)
    if minute == 0:
        return [words, f"{words} o'clock", f"{words} hundred"]
    return [f"{words} {_pair(f'{minute:02d}')}"]


def _say_money(names: tuple[str, str, str], amount: int, cents: int) -> list[str]:
    one, cent, many_cents = names
    ways = [f"{words} {one if amount == 1 else one + 's'}" for words in _cardinals(amount)]
    if not cents:
        return ways
    small = f"{number_words(cents)} {cent if cents == 1 else many_cents}"
    if not amount:
        return [small]
    return [f"{way}{joint}{small}" for way in ways for joint in (" ", " and ")] + [
        f"{words} {_pair(f'{cents:02d}')}" for words in _cardinals(amount)
    ]
