"""Makes hotwords of names that were written for the eye, such as those of the rooms and devices of a home.

"Living-Room Lamp 2" becomes "living room lamp two", in the case and the letters that the model has. A name
that it cannot spell is left out: it must not cost its speaker the sentence.
What this file does not do: search for them (edge_asr.runtime.decoding.hotwords).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from edge_asr.runtime.decoding.grammar.number_words import MAX_NUMBER, number_words
from edge_asr.runtime.decoding.hotwords import Spelling
from edge_asr.serving.options import MAX_HOTWORD_CHARACTERS, MAX_HOTWORDS

_WORD = re.compile(r"[0-9]+|[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_FEW = 100
_FULL_BOOST, _BOOST_OF_MANY = 1.0, 0.5
"""docs/decoding.md: of a long list, more appears that was not said, so each has less to say."""


def hotwords_from_names(
    names: Sequence[str], terms: Sequence[str], spelling: Spelling, *, is_english: bool
) -> tuple[str, ...]:
    """Return hotwords with their boosts; a term has half the boost of a name.

    Args:
        names: what counts most; beyond `MAX_HOTWORDS` in all, what comes last is left out.
        terms: what counts less.
        spelling: that of the model.
        is_english: whether a number is said in English words; else a name with digits is left out.
    """
    found: dict[str, bool] = {}
    for phrase, is_name in [*((name, True) for name in names), *((term, False) for term in terms)]:
        if len(found) == MAX_HOTWORDS:
            break
        if spoken := _spoken(phrase, spelling, is_english):
            found.setdefault(spoken, is_name)
    boost = _FULL_BOOST if len(found) <= _FEW else _BOOST_OF_MANY
    return tuple(f"{phrase}:{boost if is_name else boost / 2}" for phrase, is_name in found.items())


def _spoken(phrase: str, spelling: Spelling, is_english: bool) -> str | None:
    if len(phrase) > MAX_HOTWORD_CHARACTERS:
        return None
    words: list[str] = []
    for written in _WORD.findall(phrase.replace("\u2019", "'")):
        if written.isdigit() and is_english and int(written) <= MAX_NUMBER:
            parts = number_words(int(written)).split()
        else:
            parts = [written]
        for part in parts:
            word = next(filter(spelling.can_spell, _forms(part)), None)
            if word is None:
                return None
            words.append(word)
    text = (" " if spelling.has_spaces else "").join(words)
    return text if 0 < len(text) <= MAX_HOTWORD_CHARACTERS - len(":0.25") else None


def _forms(word: str) -> Iterable[str]:
    """Give the ways to write a word, as it is first, without accents last."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    for text in dict.fromkeys((word, bare)):
        yield from (text, text.lower(), text.upper())
