"""Aligns a text with log-probs as they come: `Recognizer.align` and `align_file` are made of it.

What this file does not do: run models; read the text (text.py), search (search.py), set borders (result.py).
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
import numpy.typing as npt

from edge_asr.errors import AudioError, ConfigError, VocabularyError
from edge_asr.runtime.alignment.graph import build_graph
from edge_asr.runtime.alignment.result import Alignment, make_alignment
from edge_asr.runtime.alignment.search import LogProbStore, find_path
from edge_asr.runtime.alignment.text import Unspelled, read_text
from edge_asr.runtime.decoding.grammar.spelling import Speller
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
_READ = 4096


class Aligner:
    """Aligns one text with one recording.

    Args:
        text: in ordinary spelling.
        vocabulary: the model's.

    Raises:
        ConfigError: the text has nothing to align.
        VocabularyError: the model cannot spell a word.
    """

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        speller = Speller(vocabulary)
        words, unspelled = read_text(text, speller)
        if unspelled:
            raise VocabularyError(_describe(unspelled))
        if not words:
            raise ConfigError(f"the text {text.strip()[:40]!r} has no word to align; give what is said")
        self._vocabulary = vocabulary
        self._texts = [word.text for word in words]
        self._graph = build_graph(words, vocabulary, speller)
        self._store = LogProbStore(self._graph.columns)

    def push(self, log_probs: F32Array) -> None:
        """Take the next frames [t, V]."""
        self._store.add(log_probs)

    def finish(self, frame_s: float, duration_s: float) -> Alignment:
        """Align all frames.

        Args:
            frame_s: length of a frame, seconds.
            duration_s: of the recording.

        Raises:
            AudioError: there are fewer frames than tokens.
        """
        graph, store = self._graph, self._store
        n_tokens = int(graph.n_tokens.sum())
        if store.n_frames < n_tokens:
            raise AudioError(
                f"the text has {n_tokens} tokens, which take {n_tokens * frame_s:.1f} s at least, and the "
                f"sound has {duration_s:.1f} s; give the text of this recording"
            )
        path = find_path(graph, store)
        token = np.where(path.arcs >= 0, graph.token[path.arcs], graph.blank)
        log_probs = store.best
        for begin in range(0, store.n_frames, _READ):
            rows = store.read(begin, min(begin + _READ, store.n_frames))
            log_probs[begin : begin + len(rows)] += rows[np.arange(len(rows)), token[begin:][: len(rows)]]
        return make_alignment(self._texts, graph, path, log_probs, self._vocabulary, frame_s, duration_s)

    def __enter__(self) -> Aligner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()


def _describe(unspelled: list[Unspelled]) -> str:
    first = unspelled[0]
    more = f" (and {len(unspelled) - 1} more words)" if len(unspelled) > 1 else ""
    return (
        f"the model cannot spell {first.word!r}, word {first.place} of the text{more}: no token has "
        f"{first.missing!r}; write it in the model's letters, or leave it out"
    )
