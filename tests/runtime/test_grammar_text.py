"""Grammars as text: what they say, and one clear sentence with its line for each thing that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import Grammar
from edge_asr.runtime.decoding.grammar.graph import compile_graph
from edge_asr.runtime.decoding.grammar.jsgf import parse_jsgf
from edge_asr.runtime.decoding.grammar.network import build_network
from edge_asr.runtime.decoding.grammar.number_words import number_words
from edge_asr.runtime.decoding.grammar.read import read_grammar
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.vocabulary import Vocabulary

LETTERS = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz ")


def phrases_of(grammar: Grammar, longest: int = 8) -> set[str]:
    """All phrases of at most so many words, by walking the word network in every way."""
    network = build_network(grammar)
    found: set[str] = set()
    seen: set[tuple[int, tuple[str, ...]]] = set()
    stack: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    while stack:
        state, said = place = stack.pop()
        if place in seen or len(said) > longest:
            continue
        seen.add(place)
        if state == network.n_states - 1:
            found.add(" ".join(said))
        for arc in network.arcs_of[state]:
            word = int(network.word[arc])
            stack.append((int(network.target[arc]), said if word < 0 else (*said, network.words[word])))
    return found


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("stop", {"stop"}),
        ("stop\n\n# nothing\ngo on  # comment", {"stop", "go on"}),
        ("turn [the] (light|lamp)", {"turn the light", "turn light", "turn the lamp", "turn lamp"}),
        ("yes | of course", {"yes", "of course"}),
        ("{color} sky\n{color} = red | dark [very] blue", {"red sky", "dark blue sky", "dark very blue sky"}),
        ("wait {n 9..11} [s]", {f"wait {n}{s}" for n in ("nine", "ten", "eleven") for s in ("", " s")}),
        ("a {n 100..101}", {"a one hundred", "a one hundred one", "a one hundred and one"}),
        ("[a [b]] c", {"c", "a c", "a b c"}),
        ("{a}\n{a} = {b} x\n{b} = one | two", {"one x", "two x"}),
    ],
)  # fmt: skip
def test_templates_say_these_phrases(text: str, phrases: set[str]) -> None:
    assert phrases_of(parse_template(text)) == phrases


JSGF = "#JSGF V1.0;\ngrammar test;\n"


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("public <a> = stop;", {"stop"}),
        ("public <a> = go // on;\n | /* not\nthis */ stop;", {"go", "stop"}),
        ("<b> = red | /2.5/ green;", None),
        ("<b> = /1/ red | /2.5/ green;\npublic <a> = [so] <b>;", {"red", "green", "so red", "so green"}),
        ("public <a> = x+;", {" ".join("x" * n) for n in range(1, 9)}),
        ("public <a> = (x y)* z;", {" ".join([*("x y " * n).split(), "z"]) for n in range(4)}),
        ("public <a> = one {ONE} | <test.b>;\n<b> = \"new york\" <NULL>;", {"one", "new york"}),
        ("public <a> = one | no <VOID>;\npublic <b> = two;", {"one", "two"}),
    ],
)  # fmt: skip
def test_jsgf_says_these_phrases(text: str, phrases: set[str] | None) -> None:
    if phrases is None:
        with pytest.raises(GrammarError, match=r"no public rule|either every alternative has a weight"):
            parse_jsgf(JSGF + text)
        return
    assert phrases_of(parse_jsgf(JSGF + text)) == phrases


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x has no phrases"),
        ("# only this\n", "x has no phrases"),
        ("stop\ngo {place}", "x, line 2: {place} is not defined; add a line {place} = ..."),
        ("go {place}\n{place} =", "x, line 2: the slot {place} has no values"),
        ("go {place}\n{place} = a |", "x, line 2: an alternative or phrase is empty"),
        ("go {a}\n{a} = b | {a} c", "x, line 2: {a} refers to itself ({a} > {a}); recursion, left or right"),
        ("go {a}\n{a} = b {c}\n{c} = {a}", "x, line 3: {a} refers to itself ({a} > {c} > {a})"),
        ("go {a}\n{a} = b\n{a} = c", "x, line 3: {a} is defined in line 2 already"),
        ("stop\n[please]", "x, line 2: all of the phrase is optional"),
        ("(a|b", "x, line 1: '(' is not closed; add ')'"),
        ("a)", "x, line 1: ')' closes nothing"),
        ("(a]", "x, line 1: '(' is not closed"),
        ("a = b", "x, line 1: '=' means nothing here"),
        ("{a", "x, line 1: '{' means nothing here"),
        ("{7}", "x, line 1: {7} is not a slot"),
        ("{n 5..3}", "x, line 1: {n 5..3} is not a range"),
        ("{n 0..99999}", "at most 10000 numbers"),
        ("(" * 60 + "a" + ")" * 60, "x, line 1: more than 50 brackets"),
        ("a\n{r0} = a\n" + "".join(f"{{r{i}}} = {{r{i - 1}}}\n" for i in range(1, 200)), "100 rules within"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_one_sentence_with_its_line(text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(message)) as caught:
        parse_template(text, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stop", "x, line 1: ['stop'] is not '#JSGF V1.0;'"),
        ("#JSGF V1.0;\npublic <a> = b;", "x does not name itself"),
        (JSGF, "x has no public rule"),
        (JSGF + "<a> = b;", "x has no public rule"),
        (JSGF + "public <a> = b", "x, line 3: 'public' has no ; at its end"),
        (JSGF + "public <a> = <b>;", "x, line 3: <b> is not defined"),
        (JSGF + "public <a> = b\n <a>;", "x, line 4: <a> refers to itself (<a> > <a>)"),
        (JSGF + "public <a> = ;", "x, line 3: <a> has no values"),
        (JSGF + "public <a> = b; <a> = c;", "x, line 3: <a> is defined twice"),
        (JSGF + "public <a> = /x/ b | /1/ c;", "x, line 3: the weight /x/ is not a positive number"),
        (JSGF + "public <a> = * b;", "x, line 3: * has nothing before it"),
        (JSGF + "public <a> = b c = d;", "x, line 3: a second = in one rule"),
        (JSGF + "\n public <a> = b {tag;", "x, line 4: '{' means nothing here or is not closed"),
        (JSGF + "import <y.z>;", "x, line 3: 'y' cannot be imported"),
        (JSGF + "hello <a> = b;", "x, line 3: 'hello' begins no rule"),
    ],
)
def test_a_wrong_jsgf_is_one_sentence_with_its_line(text: str, message: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(message)) as caught:
        parse_jsgf(text, "x")
    assert "\n" not in str(caught.value)


def test_one_file_is_imported(tmp_path: Path) -> None:
    (tmp_path / "colors.jsgf").write_text(
        "#JSGF V1.0;\ngrammar colors;\npublic <color> = <warm> | blue;\n<warm> = red;"
    )
    main = tmp_path / "main.gram"
    main.write_text(JSGF + "import <colors.color>;\npublic <a> = paint <color>;")
    assert phrases_of(read_grammar(main)) == {"paint red", "paint blue"}
    main.write_text(JSGF + "import <colors.warm>;\npublic <a> = <warm>;")
    with pytest.raises(GrammarError, match=r"main\.gram, line 3: 'colors' has no public rule <warm>"):
        read_grammar(main)
    main.write_text(JSGF + "import <sounds.*>;\npublic <a> = b;")
    with pytest.raises(GrammarError, match=r"there is no sounds\.jsgf or sounds\.gram beside main\.gram"):
        read_grammar(main)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match="there is no grammar file"):
        read_grammar(tmp_path / "none.txt")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(GrammarError, match="is not UTF-8 text"):
        read_grammar(tmp_path / "latin")


def test_a_word_that_cannot_be_spelled_is_named_with_its_line() -> None:
    with pytest.raises(
        GrammarError, match=r"x, line 2: the model cannot spell 'caf\xe9' \(no token has '\xe9'\)"
    ):
        compile_graph(parse_template("stop\ngo to the café", "x"), LETTERS)


def test_numbers_are_spoken_in_english() -> None:
    spoken = {0: "zero", 13: "thirteen", 20: "twenty", 99: "ninety nine", 300: "three hundred"}
    spoken |= {512: "five hundred twelve", 7000: "seven thousand"}
    spoken |= {120_001: "one hundred twenty thousand one"}
    assert {number: number_words(number) for number in spoken} == spoken
    assert len({number_words(number) for number in range(10_000)}) == 10_000
