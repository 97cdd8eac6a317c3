"""Grammars in JSGF, the Java Speech Grammar Format (W3C note of 5 June 2000), as PocketSphinx reads them.

    #JSGF V1.0;
    grammar lamp;
    <color> = red | /2/ green {GREEN};
    public <turn> = turn [the] (light | lamp)+ <color>;

Header, rules, alternatives, options, * and +, weights, tags and imports, whose files may not import further.
Every public rule is a phrase. A reference is a slot with the name of its rule. Weights choose among several
readings of the same words, and do not change what is heard.
What this file does not do: recursion (of either side), Unicode escapes, rules within packages.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import Grammar, Rule
from edge_asr.runtime.decoding.grammar.parser import Symbol, parse_expression

HEADER = "#JSGF"

_HEADER = re.compile(r"#JSGF[ \t]+V1\.0[^;\n]*;")
_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|\{(?:\\.|[^}\\])*\}|//[^\n]*|/\*.*?\*/', re.DOTALL)
_SYMBOL = re.compile(
    r"\s*(?:(?P<mark>[()\[\]|*+=;])|<(?P<rule>[^<>\s]+)>|\{(?P<tag>(?:\\.|[^}\\])*)\}"
    r'|"(?P<quoted>(?:\\.|[^"\\])*)"|/(?P<weight>[^/\s]*)/|(?P<word>[^\s()\[\]|*+=;<>{}"/]+))',
    re.DOTALL,
)

#: Gives (name of the file, its text) of a grammar by its name, as an import says it.
ImportReader = Callable[[str], tuple[str, str]]


def parse_jsgf(text: str, source: str = "the grammar", read_import: ImportReader | None = None) -> Grammar:
    """Parse a grammar in JSGF.

    Args:
        text: its content.
        source: name of the file, for messages.
        read_import: finds the grammars it imports; None refuses imports.

    Raises:
        GrammarError: as `Grammar`; the message names the line.
    """
    rules, public = _read_rules(text, source, read_import)
    if not public:
        raise GrammarError(
            f"{source} has no public rule, so there is nothing to say; write public <name> = ...;"
        )
    phrases = tuple(dataclasses.replace(rules[name], name="") for name in public)
    return Grammar(source=source, phrases=phrases, rules=rules, quote="<>")


def _read_rules(
    text: str, source: str, read_import: ImportReader | None
) -> tuple[dict[str, Rule], list[str]]:
    """Return all rules by name, imported ones included, and the names of the file's own public ones."""
    header = _HEADER.match(text)
    if header is None:
        raise GrammarError(f"{source}, line 1: {text[:40].splitlines()[:1]} is not '#JSGF V1.0;'")
    rules: dict[str, Rule] = {}
    public: list[str] = []
    name = ""
    for statement in _statements(_without_comments(" " * header.end() + text[header.end() :]), source):
        first = statement[0]
        if first.kind == "word" and first.text == "grammar":
            name = " ".join(symbol.text for symbol in statement[1:])
        elif first.kind == "word" and first.text == "import":
            _import(statement, source, read_import, rules)
        else:
            rule, is_public = _read_rule(statement, source, name)
            if rule.name in rules:
                raise GrammarError(
                    f"{source}, line {rule.line}: <{rule.name}> is defined twice; join them with |"
                )
            rules[rule.name] = rule
            if is_public:
                public.append(rule.name)
    if not name:
        raise GrammarError(f"{source} does not name itself; add a line 'grammar name;' below the header")
    return rules, public


def _read_rule(statement: list[Symbol], source: str, grammar: str) -> tuple[Rule, bool]:
    is_public = statement[0].kind == "word" and statement[0].text == "public"
    rest = statement[1:] if is_public else statement
    line = statement[0].line
    if len(rest) < 2 or rest[0].kind != "rule" or rest[1].text != "=":
        raise GrammarError(
            f"{source}, line {line}: {statement[0].text!r} begins no rule; write <name> = words;"
        )
    name = rest[0].text
    if len(rest) == 2:
        raise GrammarError(f"{source}, line {line}: <{name}> has no values; write <{name}> = one | another;")
    symbols = []
    for symbol in rest[2:]:
        if symbol.text == "=" and symbol.kind == "mark":
            raise GrammarError(f"{source}, line {symbol.line}: a second = in one rule; end the first with ;")
        if symbol.kind == "rule" and symbol.text.startswith(grammar + "."):
            symbol = dataclasses.replace(symbol, text=symbol.text[len(grammar) + 1 :])
        elif symbol.kind == "rule":
            symbol = dataclasses.replace(symbol, text=symbol.text.rpartition(".")[2])
        symbols.append(symbol)
    return Rule(name, parse_expression(symbols, source=source, line=line), line), is_public


def _import(
    statement: list[Symbol], source: str, read_import: ImportReader | None, rules: dict[str, Rule]
) -> None:
    line = statement[0].line
    grammar, _, wanted = statement[1].text.rpartition(".") if len(statement) == 2 else ("", "", "")
    if not grammar or statement[1].kind != "rule":
        raise GrammarError(
            f"{source}, line {line}: an import is written import <grammar.rule>; or <grammar.*>;"
        )
    if read_import is None:
        raise GrammarError(
            f"{source}, line {line}: {grammar!r} cannot be imported by a grammar without a file"
        )
    try:
        name_of_file, text = read_import(grammar.rpartition(".")[2])
        imported, public = _read_rules(text, name_of_file, None)
    except GrammarError as error:
        raise GrammarError(f"{source}, line {line}: the import of {grammar!r} failed: {error}") from error
    if wanted != "*" and wanted not in public:
        raise GrammarError(f"{source}, line {line}: {grammar!r} has no public rule <{wanted}>")
    for name, rule in imported.items():
        if name in rules and rules[name] != rule:
            raise GrammarError(
                f"{source}, line {line}: <{name}> of {grammar!r} is defined here too; rename one of them"
            )
        rules[name] = rule


def _statements(text: str, source: str) -> list[list[Symbol]]:
    """Split into symbols and, at each semicolon, into statements."""
    statements: list[list[Symbol]] = []
    current: list[Symbol] = []
    position, line = 0, 1
    end = len(text.rstrip())
    while position < end:
        found = _SYMBOL.match(text, position)
        begin = (
            len(text) - len(text[position:].lstrip()) if found is None else found.start(found.lastgroup or 0)
        )
        line += text.count("\n", position, begin)
        if found is None:
            raise GrammarError(
                f"{source}, line {line}: {text[begin]!r} means nothing here or is not closed; see the "
                "notation of JSGF"
            )
        line_of_symbol = line
        line += text.count("\n", begin, found.end())
        position = found.end()
        kind, content = found.lastgroup, found.group(found.lastgroup or 0)
        if content == ";" and kind == "mark":
            if current:
                statements.append(current)
            current = []
        elif kind == "quoted":
            words = re.sub(r"\\(.)", r"\1", content).split()
            current.extend(Symbol("word", word, line_of_symbol) for word in words)
        elif kind == "tag":
            current.append(Symbol("tag", re.sub(r"\\(.)", r"\1", content).strip(), line_of_symbol))
        elif kind == "rule":
            current.append(Symbol("rule", content, line_of_symbol))
        elif kind == "weight":
            current.append(Symbol("weight", content, line_of_symbol))
        else:
            current.append(Symbol("mark" if kind == "mark" else "word", content, line_of_symbol))
    if current:
        raise GrammarError(f"{source}, line {current[0].line}: {current[0].text!r} has no ; at its end")
    return statements


def _without_comments(text: str) -> str:
    """Replace comments by blanks, lines kept; what stands in quotes or tags is none."""

    def blank(found: re.Match[str]) -> str:
        content = found[0]
        return re.sub(r"[^\n]", " ", content) if content.startswith("/") else content

    return _COMMENT.sub(blank, text)
