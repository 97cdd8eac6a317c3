"""The file of a language model, and what a recognizer asks it: the cost of a word after other words.

It is a format of our own. Of KenLM, no wheels serve all our Python versions, none has queries for many words
at once, and an n-gram takes a third of the space here: word ids of 16 or 32 bits in sorted arrays, and
probabilities and back-off weights of 8 bits through a codebook for each length. The arrays are mapped into
memory, not read, so all processes share them and only what is used is loaded.

    magic, one line | header, one line of JSON | arrays, each at a multiple of 8 bytes

The words are a trie of their UTF-8 bytes, numbered level by level; the n-th node that ends a word is word n.
An n-gram is a child of its context: `begins` says where the children of each begin. Its probability and
back-off weight are found one word at a time, because few words end in a frame, and then numpy is slower.
What this file does not do: score tokens (scorer.py), hold a model while it is built (ngrams.py).
"""

from __future__ import annotations

import functools
import json
import mmap
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.atomic import writing_file
from edge_asr.errors import LanguageModelError
from edge_asr.records import check_fields, decode_json, json_from_record, record_from_json
from edge_asr.runtime.decoding.lm.ngrams import BEGIN, MAX_ORDER, SPECIAL_WORDS, F64Array, Ngrams

MAGIC = b"edge-asr language model 1\n"
MAX_HEADER_BYTES = 1 << 20
N_SPECIAL = len(SPECIAL_WORDS)
_ALIGNMENT = 8

Case = Literal["lower", "upper", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LmWeights:
    """How much a language model has to say, all found by `edge-asr lm tune`.

    Attributes:
        alpha: what its natural logarithms are multiplied by.
        beta: what each word adds to the score, natural log; it makes up for what alpha takes from long texts.
        unknown_word: natural log that an unknown word costs, times alpha.
        unknown_letter: the same for each of its letters.

    Raises:
        LanguageModelError: a value that is no finite number, or a negative alpha.
    """

    alpha: float = 0.6
    beta: float = 1.5
    unknown_word: float = -9.0
    unknown_letter: float = -2.0

    def __post_init__(self) -> None:
        check_fields(self, "the weights of the language model", error=LanguageModelError)
        if self.alpha < 0:
            raise LanguageModelError(f"alpha is {self.alpha}; give 0 or more")


def weights_from_dict(data: Mapping[str, float]) -> LmWeights:
    """Read the weights that a bundle has.

    Raises:
        LanguageModelError: a missing or unknown key, or a value out of range.
    """
    where = "the weights of the language model in bundle.json"
    return record_from_json(LmWeights, dict(data), where, error=LanguageModelError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LmHeader:
    """The header of a file.

    Attributes:
        counts: n-grams of 1, 2, ... words.
        n_nodes: of the trie of words.
        case: "lower" where no word has a capital letter, "upper" where none has a small one.
        characters: all that its words are made of, sorted.
        weights: what `lm tune` found.
        crc32: of all behind the header.
    """

    counts: tuple[int, ...]
    n_nodes: int
    case: Case
    characters: str
    weights: LmWeights = field(default_factory=LmWeights)
    crc32: int = 0

    def __post_init__(self) -> None:
        n_words = self.counts[0] if self.counts else 0
        if (
            not 1 <= len(self.counts) <= MAX_ORDER
            or n_words < N_SPECIAL
            or min(self.counts) < 1
            or max(self.n_nodes, sum(self.counts)) >= 1 << 31
        ):
            raise LanguageModelError(f"{self.counts} n-grams and {self.n_nodes} nodes are no language model")

    @property
    def arrays(self) -> dict[str, tuple[type[np.generic], int]]:
        """Return type and length of each array, in the order of the file."""
        n_words, n_all, order = self.counts[0], sum(self.counts), len(self.counts)
        n_contexts = n_all - self.counts[-1] if order > 1 else 0
        word_type = np.uint16 if n_words <= 1 << 16 else np.uint32
        return {
            "node_children": (np.uint16, self.n_nodes),
            "node_bytes": (np.uint8, self.n_nodes),
            "node_is_word": (np.uint8, self.n_nodes),
            "prob_codebook": (np.float32, 256 * order),
            "backoff_codebook": (np.float32, 256 * order),
            "begins": (np.uint32, n_contexts + 1 if order > 1 else 0),
            "suffixes": (np.uint32, sum(self.counts[2:-1])),
            "words": (word_type, n_all - n_words),
            "probs": (np.uint8, n_all),
            "backoffs": (np.uint8, n_contexts),
        }


class LanguageModel:
    """A language model in memory. It never changes, so threads may share it.

    A context is an integer: 0 is none, `start` the beginning of a sentence.

    Attributes:
        header: what it says of itself.
        path: where it came from.
        start: context at the beginning of a sentence.
    """

    def __init__(self, header: LmHeader, arrays: dict[str, npt.NDArray[Any]], path: Path) -> None:
        self.header = header
        self.path = path
        self._arrays = arrays
        n_words, self._order = header.counts[0], len(header.counts)
        self._n_words = n_words
        #: The first n-gram of each length from 2 on, counted from the first of them all, and the end.
        self._firsts = np.cumsum((0, *header.counts[1:])).tolist()
        self._n_contexts = sum(header.counts[:-1]) if self._order > 1 else 0
        views = {name: array.data for name, array in arrays.items()}  # fast for single values
        self._begins, self._suffixes, self._words = views["begins"], views["suffixes"], views["words"]
        self._prob_codes, self._backoff_codes = views["probs"], views["backoffs"]
        self._prob_values: list[list[float]] = [
            row.tolist() for row in arrays["prob_codebook"].reshape(-1, 256)
        ]
        self._backoff_values: list[list[float]] = [
            row.tolist() for row in arrays["backoff_codebook"].reshape(-1, 256)
        ]
        self.start = self._trim(BEGIN)

    @classmethod
    def load(cls, path: str | Path) -> LanguageModel:
        """Map a file into memory, and check it.

        Raises:
            LanguageModelError: no such file, another kind of file, or a damaged one.
        """
        path = Path(path)
        header, offset = read_header(path)
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                content = memoryview(mapped)[offset:]
                matches = zlib.crc32(content) == header.crc32
                content.release()
        except OSError as error:
            raise LanguageModelError(f"the language model {path} cannot be read: {error.strerror}") from error
        places, end = _places(header, offset)
        if not matches or path.stat().st_size != end:
            raise LanguageModelError(f"{path} is damaged; copy the language model again or build it again")
        mapped_bytes = np.memmap(path, np.uint8, mode="r")
        arrays = {
            name: np.asarray(mapped_bytes[place : place + np.dtype(kind).itemsize * length]).view(kind)
            for name, (kind, length, place) in places.items()
        }
        return cls(header, arrays, path)

    @property
    def trie(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the number of children of each node, its byte, and whether it ends a word."""
        return tuple(self._arrays[f"node_{name}"] for name in ("children", "bytes", "is_word"))  # type: ignore[return-value]

    def unigrams(self) -> F64Array:
        """Return the natural log of the probability of each word without a context, [words]."""
        codes = self._arrays["probs"][: self._n_words]
        return np.asarray(self._arrays["prob_codebook"][codes], np.float64)

    def score(self, context: int, word: int) -> tuple[float, int]:
        """Return the natural log of the probability of a word in a context, and the context behind it."""
        backoff = 0.0
        while context:
            place = self._find(context, word)
            if place >= 0:
                level = self._level(place)
                code = self._prob_codes[self._n_words + place]
                return backoff + self._prob_values[level][code], self._context_behind(context, word, place)
            backoff += self._backoff(context)
            context = self._suffix(context)
        return backoff + self._prob_values[0][self._prob_codes[word]], self._trim(word)

    def words(self) -> tuple[str, ...]:
        """Return all words by id."""
        n_children, letters, is_word = self.trie
        parents = np.repeat(np.arange(len(n_children)), n_children).tolist()  # of nodes 1, 2, ...
        spelled = [b""]
        for parent, letter in zip(parents, letters.tolist()[1:], strict=True):
            spelled.append(spelled[parent] + bytes((letter,)))
        return (*SPECIAL_WORDS, *(spelled[node].decode() for node in np.flatnonzero(is_word).tolist()))

    def _find(self, context: int, word: int) -> int:
        """Return the place of a word behind a context; -1 if it is none."""
        end = self._begins[context + 1]
        place = bisect_left(self._words, word, self._begins[context], end)
        return place if place < end and self._words[place] == word else -1

    def _level(self, place: int) -> int:
        """Return the index of the level of an n-gram of 2 or more words."""
        level = 1
        while place >= self._firsts[level]:
            level += 1
        return level

    def _context_behind(self, context: int, word: int, place: int) -> int:
        """Return the context that ends in the n-gram at `place`, which is a word behind `context`."""
        if self._n_words + place >= self._n_contexts:  # of full length, so the first word goes
            context = self._suffix(context)
            if not context:
                return self._trim(word)
            place = self._find(context, word)
        return self._trim(self._n_words + place)

    def _trim(self, context: int) -> int:
        """Leave out the first words of a context that no longer matter."""
        while context and (
            context >= self._n_contexts
            or (self._begins[context] == self._begins[context + 1] and not self._backoff(context))
        ):
            context = self._suffix(context)
        return context

    def _backoff(self, context: int) -> float:
        level = 0 if context < self._n_words else self._level(context - self._n_words)
        return self._backoff_values[level][self._backoff_codes[context]]

    def _suffix(self, context: int) -> int:
        """Return a context without its first word."""
        if context < self._n_words:
            return 0
        place = context - self._n_words
        found: int = (
            self._words[place] if place < self._firsts[1] else self._suffixes[place - self._firsts[1]]
        )
        return found


def read_header(path: Path) -> tuple[LmHeader, int]:
    """Read the header of a file, and where its arrays begin.

    Raises:
        LanguageModelError: no such file, or another kind of file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            line = file.readline(MAX_HEADER_BYTES) if start == MAGIC else b""
    except OSError as error:
        raise LanguageModelError(f"the language model {path} cannot be read: {error.strerror}") from error
    if start != MAGIC:
        advice = "make one of ARPA text with edge-asr lm convert, or build one with edge-asr lm build"
        raise LanguageModelError(f"{path} is no language model of edge-asr; {advice}")
    data = decode_json(line, f"the header of {path}", error=LanguageModelError)
    remedy = "copy the language model again or build it again"
    header = record_from_json(
        LmHeader, data, f"the header of {path}", error=LanguageModelError, remedy=remedy
    )
    return header, len(MAGIC) + len(line)


def write_model(path: Path, model: Ngrams, weights: LmWeights | None = None) -> LmHeader:
    """Quantize a model and write its file.

    Raises:
        OSError: it cannot be written.
    """
    header, arrays = _encode(model, weights or LmWeights())
    chunks = [
        array.astype(kind).tobytes() for (kind, _), array in zip(header.arrays.values(), arrays, strict=True)
    ]
    content = b"".join(chunk + bytes(-len(chunk) % _ALIGNMENT) for chunk in chunks)
    header = replace(header, crc32=zlib.crc32(content))
    _write(path, header, content)
    return header


def file_bytes(counts: Sequence[int], words: Sequence[str]) -> int:
    """Return the size of the file of a model, or a little more, from its n-grams and words."""
    characters = len("".join(set("".join(words))).encode())
    n_nodes = _n_nodes(tuple(words))
    header = LmHeader(counts=tuple(counts), n_nodes=n_nodes, case="mixed", characters="")
    return _places(header, 1024 + characters)[1]


def set_weights(path: Path, weights: LmWeights) -> None:
    """Replace the weights of a file.

    Raises:
        LanguageModelError: it cannot be read.
        OSError: it cannot be written.
    """
    header, offset = read_header(path)
    _write(path, replace(header, weights=weights), path.read_bytes()[offset:])


def _write(path: Path, header: LmHeader, content: bytes) -> None:
    line = json.dumps(json_from_record(header), ensure_ascii=False).encode()
    line += b" " * (-(len(MAGIC) + len(line) + 1) % _ALIGNMENT) + b"\n"
    with writing_file(path) as file:
        file.write(MAGIC + line)
        file.write(content)


def _places(header: LmHeader, offset: int) -> tuple[dict[str, tuple[type[np.generic], int, int]], int]:
    """Return type, length and place of each array, and where the file ends."""
    places = {}
    for name, (kind, length) in header.arrays.items():
        places[name] = (kind, length, offset)
        n_bytes = np.dtype(kind).itemsize * length
        offset += n_bytes + -n_bytes % _ALIGNMENT
    return places, offset


def _encode(model: Ngrams, weights: LmWeights) -> tuple[LmHeader, list[npt.NDArray[Any]]]:
    """Return the header and all arrays, in the order of `LmHeader.arrays`."""
    spelled = model.words[N_SPECIAL:]
    characters = "".join(sorted(set("".join(spelled))))
    n_children, letters, is_word = _trie(spelled)
    counts = tuple(len(level) for level in model.levels)
    probs, prob_books = [], []
    for level in model.levels:
        codes, book = _quantize(level.log_probs)
        probs.append(codes)
        prob_books.append(book)
    backoffs, backoff_books = [], []
    for level in model.levels[:-1]:
        codes, book = _quantize(level.backoffs)
        backoffs.append(codes)
        backoff_books.append(book)
    backoff_books.append(np.zeros(256))
    firsts = np.cumsum((0, *counts[1:]))
    begins = [
        first + np.searchsorted(level.contexts, np.arange(len(below)))
        for first, level, below in zip(firsts, model.levels[1:], model.levels, strict=False)
    ]
    header = LmHeader(
        counts=counts,
        n_nodes=len(letters),
        case=_case_of(characters),
        characters=characters,
        weights=weights,
    )
    offsets = np.cumsum((0, *counts))
    suffixes = [level.suffixes + offsets[n - 1] for n, level in enumerate(model.levels)][2:-1]
    none = np.zeros(0, np.int64)
    return header, [
        n_children,
        letters,
        is_word,
        np.concatenate(prob_books),
        np.concatenate(backoff_books),
        np.concatenate([*begins, firsts[-1:]]) if begins else none,
        np.concatenate([*suffixes, none]),
        np.concatenate([*(level.words for level in model.levels[1:]), none]),
        np.concatenate(probs),
        np.concatenate([*backoffs, none]),
    ]


@functools.lru_cache(maxsize=1)
def _n_nodes(words: tuple[str, ...]) -> int:
    return len(_trie(words[N_SPECIAL:])[1])


def _trie(words: tuple[str, ...]) -> tuple[npt.NDArray[Any], ...]:
    """Return the number of children, the byte and whether it ends a word, of each node, level by level."""
    rows = sorted(word.encode() for word in words)
    longest = max(map(len, rows), default=0)
    table = np.zeros((len(rows), longest + 1), np.int16)  # a byte plus 1; 0 is behind the end
    for row, word in zip(table, rows, strict=True):
        row[: len(word)] = np.frombuffer(word, np.uint8).astype(np.int16) + 1
    nodes = np.zeros(len(rows), np.int64)  # of each word, at the depth reached
    n_nodes, letters, parents = 1, [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    ends = []
    for depth in range(longest):
        alive = np.flatnonzero(table[:, depth] > 0)
        keys, found = np.unique(nodes[alive] * 257 + table[alive, depth], return_inverse=True)
        parents.append(keys // 257)
        letters.append(keys % 257 - 1)
        nodes[alive] = n_nodes + found
        n_nodes += len(keys)
        ends.append(nodes[alive[table[alive, depth + 1] == 0]])
    is_word = np.zeros(n_nodes, np.bool_)
    is_word[np.concatenate([*ends, np.zeros(0, np.int64)])] = True
    n_children = np.bincount(np.concatenate(parents), minlength=n_nodes)
    return n_children, np.concatenate(letters), is_word


def _quantize(values: F64Array) -> tuple[npt.NDArray[np.uint8], F64Array]:
    """Return codes and what each means: 0, and bins of as many values each, by their means (as KenLM)."""
    distinct, found, counts = np.unique(values.astype(np.float32), return_inverse=True, return_counts=True)
    counts[distinct == 0] = 0  # many contexts leave all to shorter ones: that stays exact
    if len(distinct) <= 255:
        bins = np.arange(len(distinct))
    else:
        bins = np.unique((np.cumsum(counts) - counts) * 255 // counts.sum(), return_inverse=True)[1]
    sums, n_values = np.bincount(bins, distinct * counts), np.bincount(bins, counts)
    book = np.zeros(256)
    book[1 : len(sums) + 1] = sums / np.maximum(n_values, 1)
    return np.where(distinct == 0, 0, bins + 1)[found].astype(np.uint8), book


def _case_of(characters: str) -> Case:
    if characters == characters.lower():
        return "lower"
    return "upper" if characters == characters.upper() else "mixed"
