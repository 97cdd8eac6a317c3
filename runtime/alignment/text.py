"""Reads ordinary text for alignment: how each written word may be said.

A written word is what stands between spaces; its times are the result. It is tried as it stands first, so a
model with capitals, digits or punctuation of its own gets them. Else punctuation and accents go, hyphens
divide it, and digits become English words (spoken.py). All readings are tried on the sound.
What this file does not do: spell (spelling.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from edge_asr.runtime.alignment.spoken import say
from edge_asr.runtime.decoding.grammar.spelling import Speller, Spelling

#: One way to say a written word: its spoken words.
Reading = tuple[Spelling, ...]

_EDGES = '.,;:!?"()[]{}…“”„«»¿¡*_~-–—'
_ALIKE = str.maketrans("’‘ʼ−‐‑–—", "'''-----")
_IDEOGRAPHS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True, slots=True)
class WrittenWord:
    """A word of the text as written, and all ways to say it, in tokens.

    `text` also holds neighbors without sound, such as a dash that stands alone.
    """

    text: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True, slots=True)
class Unspelled:
    """A word that the model cannot spell: its place (1 is the first), itself, and characters no token has."""

    place: int
    word: str
    missing: str


def read_text(text: str, speller: Speller) -> tuple[list[WrittenWord], list[Unspelled]]:
    """Read a text: its words, and those that the model cannot spell, which are left out."""
    words: list[WrittenWord] = []
    unspelled: list[Unspelled] = []
    known: dict[str, tuple[Reading, ...] | str] = {}
    before = ""  # what has no sound, before the first word
    for place, word in enumerate(_split_words(text, speller), start=1):
        if word not in known:
            known[word] = _spell(word, speller)
        found = known[word]
        if isinstance(found, str):
            unspelled.append(Unspelled(place, word, found))
        elif found:
            words.append(WrittenWord(before + word, found))
            before = ""
        elif words:
            words[-1] = WrittenWord(f"{words[-1].text} {word}", words[-1].readings)
        else:
            before += word + " "
    return words, unspelled


def _split_words(text: str, speller: Speller) -> Iterator[str]:
    """Split at spaces, and around ideographs where a model does not separate words."""
    for word in text.split():
        if speller.has_boundary or word.isascii():
            yield word
        else:
            yield from _IDEOGRAPHS.findall(word)


def _spell(word: str, speller: Speller) -> tuple[Reading, ...] | str:
    """Spell a word in all readings; () if it has no sound, the missing characters if it cannot be spelled."""
    missing = ""
    for phrases in _forms(word):
        readings: dict[Reading, None] = {}
        for phrase in phrases:
            spelled = [speller.spell(spoken) for spoken in phrase]
            if phrase and all(spelled):
                readings[tuple(spelling for spelling in spelled if spelling)] = None
            elif phrase:
                missing = "".join(dict.fromkeys(speller.missing("".join(phrase))))
        if readings:
            return tuple(readings)
    has_sound = any(unicodedata.category(c)[0] in "LN" for c in word)
    return missing or "".join(dict.fromkeys(word)) if has_sound or missing else ()


def _forms(word: str) -> Iterator[list[list[str]]]:
    """Yield the phrases that a written word may stand for, the ones nearest to what is written first."""
    if any(c.isalnum() for c in word):
        yield [[word]]
        yield [[word.strip(_EDGES)]]
    plain = unicodedata.normalize("NFKC", word).translate(_ALIKE)
    yield say(plain)
    yield say("".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c)))
