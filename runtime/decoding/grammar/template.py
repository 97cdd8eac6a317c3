"""Grammars as plain text, one phrase a line: the sentence templates that home automation uses.

    # a comment
    {color} = red | green | dark blue
    turn [the] (light|lamp) {color}
    set volume to {number 0..100}

[optional], (one|of|these), {a list} that a line defines, before or after its use, and {a name 0..100} for a
number in English words. A name in braces is a slot: the answer says what was said there.
What this file does not do: JSGF (jsgf.py).
"""

from __future__ import annotations

import re

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import Grammar, Rule
from edge_asr.runtime.decoding.grammar.number_words import MAX_NUMBER, MAX_VALUES
from edge_asr.runtime.decoding.grammar.parser import Symbol, parse_expression

_DEFINITION = re.compile(r"\{\s*([^\W\d]\w*)\s*\}\s*=(.*)", re.DOTALL)
_SYMBOL = re.compile(r"\s*(?:([()\[\]|])|\{([^{}]*)\}|([^\s()\[\]|{}<>=;*+]+))")
_NAME = re.compile(r"[^\W\d]\w*")
_RANGE = re.compile(r"([^\W\d]\w*)\s+(\d+)\s*\.\.\s*(\d+)")


def parse_template(text: str, source: str = "the grammar") -> Grammar:
    """Parse a grammar in plain text.

    Raises:
        GrammarError: as the class; the message names the line.
    """
    phrases: list[Rule] = []
    rules: dict[str, Rule] = {}
    for number, content in enumerate(text.splitlines(), start=1):
        line = content.partition("#")[0].strip()
        if not line:
            continue
        definition = _DEFINITION.match(line)
        if definition is None:
            body = parse_expression(_symbols(line, source, number), source=source, line=number)
            phrases.append(Rule("", body, number))
            continue
        name, values = definition.groups()
        if name in rules:
            raise GrammarError(
                f"{source}, line {number}: {{{name}}} is defined in line {rules[name].line} already; "
                "join the two with |"
            )
        if not values.strip():
            raise GrammarError(
                f"{source}, line {number}: the slot {{{name}}} has no values; write "
                f"{{{name}}} = one | another"
            )
        body = parse_expression(_symbols(values, source, number), source=source, line=number)
        rules[name] = Rule(name, body, number)
    return Grammar(source=source, phrases=tuple(phrases), rules=rules)


def _symbols(line: str, source: str, number: int) -> list[Symbol]:
    symbols: list[Symbol] = []
    position = 0
    while position < len(line.rstrip()):
        found = _SYMBOL.match(line, position)
        if found is None:
            raise GrammarError(
                f"{source}, line {number}: {line[position:].strip()[:1]!r} means nothing here; a phrase has "
                "words, [options], (alternatives|like this) and {slots}"
            )
        position = found.end()
        mark, braces, word = found.groups()
        if mark:
            symbols.append(Symbol("mark", mark, number))
        elif word:
            symbols.append(Symbol("word", word, number))
        else:
            symbols.append(_slot(braces.strip(), source, number))
    return symbols


def _slot(content: str, source: str, number: int) -> Symbol:
    if _NAME.fullmatch(content):
        return Symbol("rule", content, number)
    found = _RANGE.fullmatch(content)
    if found is None:
        raise GrammarError(
            f"{source}, line {number}: {{{content}}} is not a slot; write a name, as {{color}}, or a name "
            "and a range, as {number 0..100}"
        )
    name, first, last = found[1], int(found[2][:9]), int(found[3][:9])
    if not first <= last <= MAX_NUMBER or last - first >= MAX_VALUES:
        raise GrammarError(
            f"{source}, line {number}: {{{content}}} is not a range; give the smaller number first, none "
            f"above {MAX_NUMBER}, and at most {MAX_VALUES} numbers"
        )
    return Symbol("range", name, number, first, last)
