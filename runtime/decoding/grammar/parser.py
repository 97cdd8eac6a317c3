"""From the symbols of a grammar to an expression: alternatives, groups, options, repetition, weights, tags.

The two forms of grammar differ in how their symbols are written (template.py, jsgf.py) and share this.
What this file does not do: split text into symbols, collect rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import (
    NOTHING,
    Choice,
    Expression,
    Reference,
    Repeat,
    Sequence,
    Slot,
    Tag,
    Word,
    optional,
)
from edge_asr.runtime.decoding.grammar.number_words import range_expression

MAX_DEPTH = 50
"""Brackets within brackets; more is an accident or an attack, and would end Python's own stack."""

_CLOSING = {"(": ")", "[": "]"}


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol of a grammar.

    Attributes:
        kind: "mark" for one of ( ) [ ] | * +, else what it is.
        text: the mark, the word, the name of a rule, the text of a tag, the weight.
        line: where it stands.
        first, last: of a range.
    """

    kind: Literal["mark", "word", "rule", "range", "tag", "weight"]
    text: str
    line: int
    first: int = 0
    last: int = 0


def parse_expression(symbols: list[Symbol], *, source: str, line: int) -> Expression:
    """Parse all symbols as one expression.

    Args:
        symbols: in order.
        source, line: where the expression begins, for messages.

    Raises:
        GrammarError: brackets that do not match, an empty alternative, a weight or tag out of place.
    """
    parser = _Parser(symbols, source, line)
    expression = parser.alternatives(0)
    left = parser.peek()
    if left is not None:
        raise parser.error(f"{left.text!r} closes nothing; remove it or add its opening bracket", left.line)
    return expression


class _Parser:
    def __init__(self, symbols: list[Symbol], source: str, line: int) -> None:
        self._symbols = symbols
        self._source = source
        self._line = line
        self._next = 0

    def peek(self) -> Symbol | None:
        return self._symbols[self._next] if self._next < len(self._symbols) else None

    def error(self, message: str, line: int | None = None) -> GrammarError:
        return GrammarError(f"{self._source}, line {self._line if line is None else line}: {message}")

    def alternatives(self, depth: int) -> Expression:
        """Parse up to a closing bracket or the end."""
        if depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} brackets within each other; define rules instead")
        items: list[Expression] = []
        weights: list[float | None] = []
        while True:
            weight = self._weight()
            items.append(self._sequence(depth))
            weights.append(weight)
            symbol = self.peek()
            if symbol is None or symbol.text != "|" or symbol.kind != "mark":
                break
            self._line = symbol.line
            self._next += 1
        known = [weight for weight in weights if weight is not None]
        if known and len(known) < len(weights):
            raise self.error("either every alternative has a weight or none has one; complete the weights")
        if len(items) == 1:
            return items[0]
        return Choice(tuple(items), tuple(known) or None)

    def _weight(self) -> float | None:
        symbol = self.peek()
        if symbol is None or symbol.kind != "weight":
            return None
        self._next += 1
        try:
            weight = float(symbol.text)
        except ValueError:
            weight = 0.0
        if not 0.0 < weight < float("inf"):
            raise self.error(f"the weight /{symbol.text}/ is not a positive number; write /0.5/", symbol.line)
        return weight

    def _sequence(self, depth: int) -> Expression:
        items: list[Expression] = []
        while (symbol := self.peek()) is not None:
            if symbol.kind == "mark" and symbol.text in "|)]":
                break
            if symbol.kind == "weight":
                raise self.error("a weight stands before an alternative; move it there", symbol.line)
            self._next += 1
            self._line = symbol.line
            if symbol.kind == "mark" and symbol.text in "*+":
                if not items or isinstance(items[-1], Tag):
                    raise self.error(f"{symbol.text} has nothing before it to repeat; remove it", symbol.line)
                items[-1] = Repeat(items[-1], symbol.text == "+")
            else:
                items.append(self._item(symbol, depth))
        if not items:
            raise self.error("an alternative or phrase is empty; write its words, or use [ ] for an option")
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self, symbol: Symbol, depth: int) -> Expression:
        if symbol.kind == "word":
            return Word(symbol.text, symbol.line)
        if symbol.kind == "tag":
            return Tag(symbol.text)
        if symbol.kind == "range":
            return Slot(symbol.text, range_expression(symbol.first, symbol.last, symbol.line))
        if symbol.kind == "rule":
            if symbol.text == "NULL":
                return NOTHING
            if symbol.text == "VOID":
                return Choice(())
            return Reference(symbol.text, symbol.line)
        inner = self.alternatives(depth + 1)
        closing = self.peek()
        if closing is None or closing.text != _CLOSING[symbol.text]:
            raise self.error(f"{symbol.text!r} is not closed; add {_CLOSING[symbol.text]!r}", symbol.line)
        self._next += 1
        return optional(inner) if symbol.text == "[" else inner
