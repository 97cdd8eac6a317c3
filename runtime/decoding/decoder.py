"""The seam between log-probs and tokens: a `Decoder` takes log-probs as they come and gives a hypothesis.

Greedy search (greedy.py) is the first; what knows more of the application (a grammar, hotwords, a language
model) implements the same four methods and is given to `Recognizer.load(decoder=...)`. One pass, windows,
batches, live finals and streaming partials all decode through it. What this file does not do: decode, or turn
frames into seconds and tokens into words (`edge_asr.runtime.transcript`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRuns:
    """Tokens and the frames that each was heard in, four arrays of one length [n], in order of time.

    Attributes:
        ids: token ids, int64, never blank.
        first_frames, last_frames: first and last output frame of each token, int64.
        confidences: of each token, float32 in (0, 1].
    """

    ids: I64Array
    first_frames: I64Array
    last_frames: I64Array
    confidences: F32Array

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concatenate(cls, parts: Iterable[TokenRuns]) -> TokenRuns:
        """Runs in order, as one."""
        runs = [part for part in parts if len(part)]
        if len(runs) < 2:
            return runs[0] if runs else EMPTY_RUNS
        return cls(
            ids=np.concatenate([r.ids for r in runs]),
            first_frames=np.concatenate([r.first_frames for r in runs]),
            last_frames=np.concatenate([r.last_frames for r in runs]),
            confidences=np.concatenate([r.confidences for r in runs]),
        )

    def select(self, which: slice) -> TokenRuns:
        """Some of the runs, in order."""
        return TokenRuns(
            ids=self.ids[which],
            first_frames=self.first_frames[which],
            last_frames=self.last_frames[which],
            confidences=self.confidences[which],
        )


EMPTY_RUNS = TokenRuns(
    ids=np.zeros(0, np.int64),
    first_frames=np.zeros(0, np.int64),
    last_frames=np.zeros(0, np.int64),
    confidences=np.zeros(0, np.float32),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """What a decoder makes of an utterance, or of its beginning.

    Attributes:
        tokens: frames are counted from the first one pushed.
    """

    tokens: TokenRuns


class Decoder(Protocol):
    """Decodes one utterance, pushed in pieces; however it is cut, the hypothesis is the same.

    One thread at a time. What several utterances share (a compiled grammar, a language model) belongs to the
    first decoder and is shared by its forks: a fork of a decoder that has heard nothing is the next
    utterance's, so `fork` must be cheap then.
    """

    def push(self, log_probs: F32Array) -> None:
        """Take the next frames.

        Args:
            log_probs: [t, V] float32, natural log, t >= 0; not kept.

        Raises:
            ConfigError: the decoder was flushed before.
        """
        ...

    def peek(self) -> Hypothesis:
        """What `flush` would give now, while the utterance goes on."""
        ...

    def flush(self) -> Hypothesis:
        """End the utterance; its hypothesis. Nothing can be pushed any more."""
        ...

    def fork(self) -> Decoder:
        """A decoder that has heard the same; what one of the two hears later, the other does not."""
        ...


#: Makes the decoder of a model, once, when a recognizer is made; every utterance gets a fork of it.
DecoderFactory = Callable[[Vocabulary], Decoder]
