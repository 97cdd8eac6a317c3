"""A grammar compiled to the tokens of a model: a deterministic, minimal graph, as arrays.

The word network (network.py) is spelled (spelling.py), made deterministic by the subset construction and
minimal by refinement of classes (Moore 1956), so common beginnings and common ends are shared. Nodes are then
split by the token that leads to them: every arc into a node has that node's token, which is what CTC
needs, because whether a blank must come between two tokens depends on whether they are the same.
A graph is saved as one .npz file, with the hash of its vocabulary.
What this file does not do: decode (search.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.atomic import write_file
from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import Grammar
from edge_asr.runtime.decoding.grammar.network import MAX_ARCS, Reading, WordNetwork, build_network
from edge_asr.runtime.decoding.grammar.spelling import Speller, Spelling
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary, join_pieces

I32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
U64Array = npt.NDArray[np.uint64]

FORMAT = 1
_END = -1  # the item of the subset construction that says: a phrase may end here
_TRAILING = -2  # the item after a word boundary at the end of a phrase
_ARRAYS = ("token", "is_final", "out_start", "out_target", "in_start", "in_source")
_NETWORK_ARRAYS = ("source", "target", "word", "action", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGraph:
    """All phrases of a grammar in tokens. Node 0 is the start; each other node has one token.

    Attributes:
        source: name of the file it was compiled from.
        vocabulary: whose tokens these are.
        network: of words, for reading phrases.
        spellings: of the network's words.
        token: [n] of each node; blank for the start.
        is_final: [n], whether a phrase may end in the node.
        out_start, out_target: the nodes that follow node i are out_target[out_start[i]:out_start[i + 1]].
        in_start, in_source: likewise the nodes before it. The start has one, n, which is no node.
        thresholds: of this grammar by mode, where it has its own.
    """

    source: str
    vocabulary: Vocabulary
    network: WordNetwork
    spellings: tuple[str, ...]
    token: I32Array
    is_final: BoolArray
    out_start: I32Array
    out_target: I32Array
    in_start: I32Array
    in_source: I32Array
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.token)

    @property
    def n_arcs(self) -> int:
        """Count the arcs between nodes."""
        return len(self.out_target)

    def read(self, ids: Sequence[int]) -> Reading | None:
        """Find words, slots and tags of a phrase in tokens; None if the grammar does not have it."""
        return self.network.read(self.phrase_text(ids), self.spellings)

    def has_phrase(self, phrase: str) -> bool:
        """Tell whether the grammar has a phrase, in words as it writes them."""
        known = dict(zip(self.network.words, self.spellings, strict=True))
        words = phrase.split()
        if not all(word in known for word in words):
            return False
        return self.network.read("".join(known[word] for word in words), self.spellings) is not None

    def phrase_text(self, ids: Sequence[int]) -> str:
        """Return the spelling of a phrase, beginning with a word boundary where words have one."""
        text = join_pieces(self.vocabulary.tokens[i] for i in ids).strip(WORD_BOUNDARY)
        has_boundary = any(spelling.startswith(WORD_BOUNDARY) for spelling in self.spellings)
        return WORD_BOUNDARY + text if has_boundary else text

    def save(self, path: Path) -> None:
        """Write one .npz file.

        Raises:
            OSError: it cannot be written.
        """
        facts = {
            "format": FORMAT,
            "source": self.source,
            "vocabulary": _hash(self.vocabulary),
            "spellings": self.spellings,
            "words": self.network.words,
            "lines": self.network.lines,
            "actions": self.network.actions,
            "n_states": self.network.n_states,
            "thresholds": dict(self.thresholds),
        }
        content = io.BytesIO()
        np.savez_compressed(
            content,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            **{name: getattr(self, name) for name in _ARRAYS},
            **{f"network_{name}": getattr(self.network, name) for name in _NETWORK_ARRAYS},
        )
        write_file(path, content.getvalue())

    @classmethod
    def load(cls, path: Path, vocabulary: Vocabulary) -> TokenGraph:
        """Read what `save` wrote.

        Raises:
            GrammarError: no such file, damaged, or compiled for other tokens.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name] for name in file.files}
            facts = json.loads(arrays.pop("facts").tobytes())
            if facts["format"] != FORMAT:
                raise GrammarError(
                    f"{path} has format {facts['format']}, this version reads {FORMAT}; compile it again"
                )
            if facts["vocabulary"] != _hash(vocabulary):
                raise GrammarError(
                    f"{path} was compiled for a model with other tokens; compile {facts['source']} again "
                    "with this model"
                )
            network = WordNetwork(
                words=tuple(facts["words"]),
                lines=tuple(facts["lines"]),
                actions=tuple((kind, text) for kind, text in facts["actions"]),
                n_states=facts["n_states"],
                **{name: arrays.pop(f"network_{name}") for name in _NETWORK_ARRAYS},
            )
            graph = cls(
                source=facts["source"],
                vocabulary=vocabulary,
                network=network,
                spellings=tuple(facts["spellings"]),
                thresholds=dict(facts.get("thresholds", {})),
                **arrays,
            )
            _check(graph)
        except OSError as error:
            raise GrammarError(f"{path} cannot be read: {error.strerror or error}") from error
        except (
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            ValueError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            if isinstance(error, GrammarError):
                raise
            raise GrammarError(
                f"{path} is no compiled grammar or is damaged ({error}); compile it again"
            ) from error
        return graph


def compile_graph(grammar: Grammar, vocabulary: Vocabulary, *, max_arcs: int = MAX_ARCS) -> TokenGraph:
    """Compile a grammar for the tokens of a model.

    Raises:
        GrammarError: a word that the vocabulary cannot spell, nothing that can be said, or a network of words
            with more than `max_arcs` arcs.
    """
    network = build_network(grammar, max_arcs=max_arcs)
    speller = Speller(vocabulary)
    spellings: list[Spelling] = []
    for word, line in zip(network.words, network.lines, strict=True):
        spelling = speller.spell(word)
        if spelling is None:
            missing = speller.missing(word)
            why = f"no token has {missing!r}" if missing else "no tokens make it up"
            raise GrammarError(
                f"{grammar.source}, line {line}: the model cannot spell {word!r} ({why}); write it in "
                "its letters"
            )
        spellings.append(spelling)
    classes, arcs, final = _determinize(network, spellings, speller)
    if not final.any():
        raise GrammarError(f"{grammar.source} has no phrase that can be said to its end; check <VOID>")
    class_of = _minimize(classes, arcs, final)
    return _make_graph(grammar, vocabulary, network, spellings, class_of, arcs, final)


def _determinize(
    network: WordNetwork, spellings: Sequence[Spelling], speller: Speller
) -> tuple[int, I32Array, BoolArray]:
    """Return the number of states, the arcs [n, 3] as (source, token, target), and which states are final.

    An item is a position in the spelling of the word of an arc of the network.
    """
    words, targets = network.word.tolist(), network.target.tolist()
    sizes = np.array([0 if word < 0 else len(spellings[word].text) for word in words], np.int64)
    base = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    arc_of = np.repeat(np.arange(len(words)), sizes).tolist()
    closures = _closures(network, base)
    boundary = speller.boundary

    def moves(item: int) -> list[tuple[int, tuple[int, ...]]]:
        if item == _TRAILING:
            return []
        if item == _END:
            return [] if boundary is None else [(boundary, (_TRAILING,))]
        arc = arc_of[item]
        spelling = spellings[words[arc]]
        begin = base[arc]
        n = len(spelling.text)
        return [
            (token, closures(targets[arc]) if end == n else (begin + end,))
            for token, end in spelling.lattice[item - begin]
        ]

    first: set[int] = set(closures(0))
    if boundary is not None:  # before the first word it may be left out
        first |= {
            i for item in first if item >= 0 for token, to in moves(item) if token == boundary for i in to
        }
    start = tuple(sorted(first))
    numbers: dict[tuple[int, ...], int] = {start: 0}
    waiting = [start]
    rows: list[tuple[int, int, int]] = []
    final: list[bool] = []
    for items in waiting:  # it grows meanwhile
        state = len(final)
        final.append(_END in items or _TRAILING in items)
        reached: dict[int, set[int]] = {}
        for item in items:
            for token, to in moves(item):
                reached.setdefault(token, set()).update(to)
        for token in sorted(reached):
            key = tuple(sorted(reached[token]))
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(waiting)
                waiting.append(key)
            rows.append((state, token, number))
    return len(final), np.array(rows, np.int32).reshape(-1, 3), np.array(final, np.bool_)


def _closures(network: WordNetwork, base: Sequence[int]) -> Any:
    """Return a function: a state of the network -> the items that can begin there, made once for each."""
    words, targets, arcs_of = network.word.tolist(), network.target.tolist(), network.arcs_of
    known: dict[int, tuple[int, ...]] = {}

    def closure(state: int) -> tuple[int, ...]:
        if state in known:
            return known[state]
        items: set[int] = set()
        seen = {state}
        stack = [state]
        while stack:
            here = stack.pop()
            if here == network.n_states - 1:
                items.add(_END)
            for arc in arcs_of[here]:
                if words[arc] >= 0:
                    items.add(base[arc])
                elif targets[arc] not in seen:
                    seen.add(targets[arc])
                    stack.append(targets[arc])
        known[state] = tuple(items)
        return known[state]

    return closure


def _minimize(n_states: int, arcs: I32Array, final: BoolArray) -> npt.NDArray[np.int64]:
    """Return the class of each state: states of one class have the same continuations.

    Classes are split by their arcs until none splits any more. The arcs of a state are compared by a 64-bit
    sum of mixed values, so two different states meet in one class with a chance of about n^2 / 2^65.
    """
    source, token, target = (arcs[:, i].astype(np.int64) for i in range(3))
    class_of = final.astype(np.int64)
    n_classes = len(np.unique(class_of))
    while True:
        # Both halves of each value are mixed, so that the sum over a state's arcs tells them apart.
        mixed = _mix(_mix(token.astype(np.uint64)) + class_of[target].astype(np.uint64))
        total = np.zeros(n_states, np.uint64)
        np.add.at(total, source, mixed)
        key = _mix(total + _mix(class_of.astype(np.uint64) + np.uint64(1 << 40)))
        class_of = np.unique(key, return_inverse=True)[1].astype(np.int64)
        n_split = int(class_of.max()) + 1
        if n_split == n_classes:
            return class_of
        n_classes = n_split


def _mix(values: U64Array) -> U64Array:
    """Mix 64 bits (splitmix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64Array = values ^ (values >> np.uint64(31))
    return mixed


def _make_graph(
    grammar: Grammar,
    vocabulary: Vocabulary,
    network: WordNetwork,
    spellings: Sequence[Spelling],
    class_of: npt.NDArray[np.int64],
    arcs: I32Array,
    final: BoolArray,
) -> TokenGraph:
    """Split the classes by the token that leads to them, and lay out the arcs by both ends."""
    n_tokens = len(vocabulary)
    by_class = np.unique(
        np.stack([class_of[arcs[:, 0]], arcs[:, 1].astype(np.int64), class_of[arcs[:, 2]]], axis=1), axis=0
    )  # (m, 3): one arc for each class and token
    start_class = int(class_of[0])
    # Node 0 is the start before any token; it is not the node that a loop back to its class leads to.
    keys = np.unique(by_class[:, 2] * n_tokens + by_class[:, 1])
    node_class = np.concatenate([[start_class], keys // n_tokens])
    token = np.concatenate([[vocabulary.blank_id], keys % n_tokens]).astype(np.int32)
    n_nodes = len(token)
    first_arc = np.searchsorted(by_class[:, 0], node_class)
    n_arcs = np.searchsorted(by_class[:, 0], node_class, side="right") - first_arc
    source = np.repeat(np.arange(n_nodes), n_arcs)
    row = np.arange(len(source)) + np.repeat(first_arc - (np.cumsum(n_arcs) - n_arcs), n_arcs)
    target = np.searchsorted(keys, by_class[row, 2] * n_tokens + by_class[row, 1]) + 1
    final_class = np.zeros(int(class_of.max()) + 1, np.bool_)
    final_class[class_of] = final
    # The start gets an arc from nowhere, so that every node has one and `reduceat` needs no exception.
    in_source = np.concatenate([[n_nodes], source[np.argsort(target, kind="stable")]])
    n_in = np.bincount(target, minlength=n_nodes)
    n_in[0] = 1
    return TokenGraph(
        source=grammar.source,
        vocabulary=vocabulary,
        network=network,
        spellings=tuple(spelling.text for spelling in spellings),
        token=token,
        is_final=final_class[node_class],
        out_start=np.concatenate([[0], np.cumsum(n_arcs)]).astype(np.int32),
        out_target=target.astype(np.int32),
        in_start=np.concatenate([[0], np.cumsum(n_in)]).astype(np.int32),
        in_source=in_source.astype(np.int32),
    )


def _check(graph: TokenGraph) -> None:
    """Check that no index of a loaded graph points outside, or raise a ValueError."""
    n, network = len(graph.token), graph.network

    def inside(array: npt.NDArray[Any], low: int, high: int, size: int | None = None) -> None:
        if array.ndim != 1 or (size is not None and len(array) != size):
            raise ValueError("an array has another size than its graph")
        if len(array) and not low <= int(array.min()) <= int(array.max()) < high:
            raise ValueError("an index points outside the graph")

    inside(graph.token, 0, len(graph.vocabulary), n)
    inside(graph.is_final, 0, 2, n)
    for start, ends, high in (
        (graph.out_start, graph.out_target, n),
        (graph.in_start, graph.in_source, n + 1),
    ):
        inside(start, 0, len(ends) + 1, n + 1)
        inside(ends, 0, high)
        if start[0] != 0 or start[-1] != len(ends) or (np.diff(start) < 0).any():
            raise ValueError("the arcs of the graph are out of order")
    if (np.diff(graph.in_start) < 1).any():
        raise ValueError("a node of the graph cannot be reached")
    if not all(isinstance(x, float) and 0.0 < x < math.inf for x in graph.thresholds.values()):
        raise ValueError("a threshold is no positive number")
    n_arcs = len(network.source)
    inside(network.source, 0, network.n_states, n_arcs)
    inside(network.target, 0, network.n_states, n_arcs)
    inside(network.word, -1, len(network.words), n_arcs)
    inside(network.action, -1, len(network.actions), n_arcs)
    if (
        len(network.cost) != n_arcs
        or not (network.cost >= 0).all()
        or len(graph.spellings) != len(network.words)
    ):
        raise ValueError("the words of the graph are incomplete")


def _hash(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(vocabulary.to_token_lines().encode()).hexdigest()
