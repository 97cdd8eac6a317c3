"""What a grammar amounts to with one model: its size, words that cannot be spelled, phrases that sound alike.

How alike two phrases are is the least number of tokens to insert, delete or replace (Levenshtein 1966), each
phrase in the fewest tokens that spell it. Of a large grammar a sample of phrases is compared.
What this file does not do: print, recognize.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.grammar.expression import Grammar
from edge_asr.runtime.decoding.grammar.graph import compile_graph
from edge_asr.runtime.decoding.grammar.network import WordNetwork, build_network
from edge_asr.runtime.decoding.grammar.spelling import Speller, Spelling
from edge_asr.vocabulary import Vocabulary

MAX_COMPARED = 400
"""Phrases that are compared with each other."""
MAX_WORDS = 30
"""A walk through a repetition is given up beyond so many words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnspelledWord:
    """A word that the model cannot spell, where it stands, and its characters that no token has."""

    word: str
    line: int
    missing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikePair:
    """Two phrases and the tokens in which they differ."""

    distance: int
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarReport:
    """What `check_grammar` finds.

    Attributes:
        source: name of the file.
        n_words: different words.
        unspelled: words that the model cannot spell; if there are any, the rest is empty.
        n_nodes, n_arcs: of the token graph.
        n_compared: phrases that were compared; is_complete: whether these are all.
        alike: the pairs that differ least.
    """

    source: str
    n_words: int
    unspelled: tuple[UnspelledWord, ...]
    n_nodes: int = 0
    n_arcs: int = 0
    n_compared: int = 0
    is_complete: bool = False
    alike: tuple[AlikePair, ...] = ()


def check_grammar(grammar: Grammar, vocabulary: Vocabulary, *, n_pairs: int = 10) -> GrammarReport:
    """Look at a grammar before it is used.

    Raises:
        GrammarError: nothing of it can be said to its end, or it is far too large.
    """
    network = build_network(grammar)
    speller = Speller(vocabulary)
    spellings = [speller.spell(word) for word in network.words]
    unspelled = tuple(
        UnspelledWord(word=word, line=line, missing=speller.missing(word))
        for word, line, spelling in zip(network.words, network.lines, spellings, strict=True)
        if spelling is None
    )
    if unspelled:
        return GrammarReport(source=grammar.source, n_words=len(network.words), unspelled=unspelled)
    graph = compile_graph(grammar, vocabulary)
    fewest = [_fewest_tokens(spelling) for spelling in spellings if spelling is not None]
    phrases, is_complete = sample_phrases(network, MAX_COMPARED)
    tokens = [[token for word in phrase for token in fewest[word]] for phrase in phrases]
    texts = [" ".join(network.words[word] for word in phrase) for phrase in phrases]
    return GrammarReport(
        source=grammar.source,
        n_words=len(network.words),
        unspelled=(),
        n_nodes=len(graph),
        n_arcs=graph.n_arcs,
        n_compared=len(phrases),
        is_complete=is_complete,
        alike=_most_alike(tokens, texts, n_pairs),
    )


def sample_phrases(network: WordNetwork, n_most: int) -> tuple[list[tuple[int, ...]], bool]:
    """Return phrases as words of the network: all in written order if they are few, else a seeded sample.

    Returns:
        At most `n_most` different phrases, and whether these are all.
    """
    phrases = _all_phrases(network, n_most)
    if phrases is not None:
        return phrases, True
    rng = np.random.default_rng(0)
    sampled: dict[tuple[int, ...], None] = {}
    for _ in range(10 * n_most):
        walked = _walk(network, rng)
        if walked is not None:
            sampled[walked] = None
        if len(sampled) == n_most:
            break
    return list(sampled), False


def _all_phrases(network: WordNetwork, n_most: int) -> list[tuple[int, ...]] | None:
    """Return all phrases; None if there are more, or they take too long to walk."""
    targets, words = network.target.tolist(), network.word.tolist()
    found: dict[tuple[int, ...], None] = {}
    stack: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for _ in range(200 * n_most):
        if not stack:
            return list(found)
        state, said = stack.pop()
        if state == network.n_states - 1:
            found[said] = None
        if len(found) > n_most or len(said) > MAX_WORDS:
            return None
        for arc in reversed(network.arcs_of[state]):
            stack.append((targets[arc], said if words[arc] < 0 else (*said, words[arc])))
    return None


def _walk(network: WordNetwork, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Walk once from the start to the end; None where it ends nowhere or becomes too long."""
    state = 0
    said: list[int] = []
    for _ in range(50 * MAX_WORDS):
        if state == network.n_states - 1:
            return tuple(said)
        arcs = network.arcs_of[state]
        if not arcs or len(said) > MAX_WORDS:
            return None
        arc = arcs[int(rng.integers(len(arcs)))]
        if network.word[arc] >= 0:
            said.append(int(network.word[arc]))
        state = int(network.target[arc])
    return None


def _fewest_tokens(spelling: Spelling) -> list[int]:
    """Return the shortest way through the lattice of a word, the first among equals."""
    n = len(spelling.text)
    best: list[list[int]] = [[] for _ in range(n + 1)]
    for position in range(n - 1, -1, -1):
        ways = [[token, *best[end]] for token, end in spelling.lattice[position] if end == n or best[end]]
        best[position] = min(ways, key=len, default=[])
    return best[0]


def _most_alike(tokens: list[list[int]], texts: list[str], n_pairs: int) -> tuple[AlikePair, ...]:
    pairs: list[tuple[int, int, int]] = []
    for first in range(len(tokens) - 1):
        distances = edit_distances(tokens[first], tokens[first + 1 :])
        pairs.extend((int(d), first, first + 1 + i) for i, d in enumerate(distances.tolist()))
    pairs.sort()
    return tuple(AlikePair(distance=d, first=texts[a], second=texts[b]) for d, a, b in pairs[:n_pairs])


def edit_distances(one: list[int], others: list[list[int]]) -> npt.NDArray[np.int64]:
    """Compute the edit distance of one sequence to each of several, all at once."""
    lens = np.array([len(other) for other in others], np.int64)
    table = np.full((len(others), int(lens.max(initial=0))), -1, np.int64)
    for row, other in zip(table, others, strict=True):
        row[: len(other)] = other
    steps = np.arange(table.shape[1] + 1)
    previous = np.tile(steps, (len(others), 1))
    for index, token in enumerate(one, start=1):
        current = np.empty_like(previous)
        current[:, 0] = index
        current[:, 1:] = np.minimum(previous[:, 1:] + 1, previous[:, :-1] + (table != token))
        # An insertion costs one a step: the least of (value - place) so far, and the place added again.
        previous = np.minimum.accumulate(current - steps, axis=1) + steps
    return np.asarray(previous[np.arange(len(others)), lens])
