"""What a grammar says, whichever form it was written in: expressions of words, and named rules.

Both forms (template.py, jsgf.py) become these, and network.py makes a network of words of them.
What this file does not do: read text (parser.py), spell words (graph.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from edge_asr.errors import GrammarError


@dataclass(frozen=True, slots=True)
class Word:
    """One word, as written in `line`."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other; without items it is nothing said."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several; without items it can never be said. Weights are positive, and None is all alike."""

    items: tuple[Expression, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """The item again and again: zero times or more, or once or more."""

    item: Expression
    at_least_once: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """What the item says is the value of a slot."""

    name: str
    item: Expression


@dataclass(frozen=True, slots=True)
class Reference:
    """A rule by its name; what it says is also the value of the slot of that name."""

    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Tag:
    """Something the application is told where it stands; nothing is said."""

    text: str


@dataclass(frozen=True, slots=True)
class Value:
    """The value of the slot around it, instead of its words; nothing is said."""

    number: int


Expression: TypeAlias = "Word | Sequence | Choice | Repeat | Slot | Reference | Tag | Value"

NOTHING = Sequence(())

MAX_CHAIN = 100
"""Rules that refer to one another in a row; more would end Python's own stack."""


def optional(item: Expression) -> Choice:
    """Make an item that may be left out."""
    return Choice((item, NOTHING))


@dataclass(frozen=True, slots=True)
class Rule:
    """An expression, the name under which others refer to it ("" for a phrase), and its line."""

    name: str
    body: Expression
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """Phrases, and the rules that they refer to.

    Attributes:
        source: name of the file, for messages.
        phrases: what can be said.
        rules: by name.
        quote: how a name is written, "{}" or "<>".

    Raises:
        GrammarError: no phrases, an unknown rule, a rule that refers to itself, or a phrase that is empty.
    """

    source: str
    phrases: tuple[Rule, ...]
    rules: Mapping[str, Rule] = field(default_factory=dict)
    quote: str = "{}"

    def __post_init__(self) -> None:
        if not self.phrases:
            raise GrammarError(f"{self.source} has no phrases; write one phrase on a line")
        depths: dict[str, int] = {}
        for rule in (*self.rules.values(), *self.phrases):
            self._check(rule, [], depths)
        known: dict[str, bool] = {}
        for phrase in self.phrases:
            if self._may_be_empty(phrase.body, known):
                raise GrammarError(
                    f"{self.source}, line {phrase.line}: all of the phrase is optional, so silence would "
                    "match it; leave one word without brackets"
                )

    def shown(self, name: str) -> str:
        """Return the name of a rule as the grammar writes it."""
        return f"{self.quote[0]}{name}{self.quote[1]}"

    def _check(self, rule: Rule, path: list[str], depths: dict[str, int]) -> None:
        """Follow all references of a rule.

        Args:
            rule: the rule.
            path: the rules that led to it.
            depths: how many rules stand within one another in those looked at; this one is added.
        """
        path = [*path, rule.name] if rule.name else path
        depth = 1
        for reference in _references(rule.body):
            target = self.rules.get(reference.name)
            if target is None:
                raise GrammarError(
                    f"{self.source}, line {reference.line}: {self.shown(reference.name)} is not defined; "
                    f"add a line {self.shown(reference.name)} = ..."
                )
            if target.name in path:
                names = [*path[path.index(target.name) :], target.name]
                raise GrammarError(
                    f"{self.source}, line {reference.line}: {self.shown(target.name)} refers to itself "
                    f"({' > '.join(map(self.shown, names))}); recursion, left or right, is not supported, "
                    "write a repetition"
                )
            if target.name not in depths:
                self._check(target, path, depths)
            depth = max(depth, depths[target.name] + 1)
            if max(depth, len(path)) > MAX_CHAIN:
                raise GrammarError(
                    f"{self.source}, line {reference.line}: more than {MAX_CHAIN} rules within each other; "
                    "write fewer"
                )
        if rule.name:
            depths[rule.name] = depth

    def _may_be_empty(self, expression: Expression, known: dict[str, bool]) -> bool:
        """Tell whether nothing said is an instance of the expression; `known` are the rules looked at."""
        if isinstance(expression, Word):
            return False
        if isinstance(expression, Sequence):
            return all(self._may_be_empty(item, known) for item in expression.items)
        if isinstance(expression, Choice):
            return any(self._may_be_empty(item, known) for item in expression.items)
        if isinstance(expression, Repeat):
            return not expression.at_least_once or self._may_be_empty(expression.item, known)
        if isinstance(expression, Slot):
            return self._may_be_empty(expression.item, known)
        if isinstance(expression, Reference):
            if expression.name not in known:
                known[expression.name] = self._may_be_empty(self.rules[expression.name].body, known)
            return known[expression.name]
        return True  # tags and values


def _references(expression: Expression) -> Iterator[Reference]:
    """Yield the references of an expression, from left to right."""
    if isinstance(expression, Reference):
        yield expression
    elif isinstance(expression, (Sequence, Choice)):
        for item in expression.items:
            yield from _references(item)
    elif isinstance(expression, (Repeat, Slot)):
        yield from _references(expression.item)
