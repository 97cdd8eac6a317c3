"""The seam between log-probs and tokens: a `Decoder` takes log-probs as they come and gives a hypothesis.

Greedy search (greedy.py) is the first one. A decoder that knows more about the application (a grammar,
hotwords, a language model) implements the same four methods and goes to `Recognizer.load(decoder=...)`.
Single clips, windows, batches, live finals and streaming partials all decode through it.
What this file does not do: decode, turn frames into seconds and tokens into words
(`edge_asr.runtime.transcript`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edge_asr.bundle.folder import Bundle

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Emissions:
    """What a model gives for some frames of one utterance.

    Attributes:
        log_probs: [t, V] float32, natural log.
        encoded: [t, D] float32, the frames that an attention decoder attends to; None if nobody asked.
    """

    log_probs: F32Array
    encoded: F32Array | None = None

    def __len__(self) -> int:
        return len(self.log_probs)

    def __getitem__(self, frames: slice) -> Emissions:
        """Select some of the frames."""
        encoded = None if self.encoded is None else self.encoded[frames]
        return Emissions(self.log_probs[frames], encoded)

    @classmethod
    def join(cls, parts: Sequence[Emissions]) -> Emissions:
        """Concatenate one part or more, in order."""
        if len(parts) == 1:
            return parts[0]
        encoded = [part.encoded for part in parts if part.encoded is not None]
        log_probs = np.concatenate([part.log_probs for part in parts])
        return cls(log_probs, np.concatenate(encoded) if len(encoded) == len(parts) else None)

    def copy(self) -> Emissions:
        """Copy the arrays, of which a larger one may be a part."""
        return Emissions(self.log_probs.copy(), None if self.encoded is None else self.encoded.copy())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRuns:
    """Tokens and the frames in which each was heard, four arrays of one length [n], in order of time.

    Attributes:
        ids: token ids, int64, never blank.
        first_frames, last_frames: first and last output frame of each token, int64.
        confidences: confidence of each token, float32 in (0, 1].
    """

    ids: I64Array
    first_frames: I64Array
    last_frames: I64Array
    confidences: F32Array

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concatenate(cls, parts: Iterable[TokenRuns]) -> TokenRuns:
        """Concatenate runs in order."""
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
        """Select some of the runs, in order."""
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
class SlotValue:
    """What was said in a slot of a phrase.

    Attributes:
        name: name of the slot.
        value: its words.
        number: the number that the words are, in a slot for numbers; else None.
        first_word, last_word: its place among the words of the phrase.
    """

    name: str
    value: str
    number: int | None
    first_word: int
    last_word: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhraseMatch:
    """Which phrase of a grammar an utterance is, if any.

    Attributes:
        matched: whether it is one; if not, the hypothesis has no tokens.
        phrase: the words as the grammar writes them; "" if not matched.
        slots, tags: in the order of the phrase.
        score: log-probability of the phrase's path less that of the best path of all, for each letter of the
            phrase, at most 0; None if not matched.
        n_letters: letters of the phrase as the model spells it, and the borders within it; 0 if not matched.
        confidence: exp(score), 0 to 1; 0 if not matched.
        heard: the tokens of greedy search, whether matched or not.
    """

    matched: bool
    phrase: str
    slots: tuple[SlotValue, ...]
    tags: tuple[str, ...]
    score: float | None
    n_letters: int
    confidence: float
    heard: TokenRuns


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """What a decoder has recognized in an utterance, or in its beginning.

    Attributes:
        tokens: the tokens, with frames counted from the first one pushed.
        score: what the decoder ranks by, natural log, of the whole utterance; None where it ranks nothing.
        log_prob: the acoustic model's part of the score: the logarithm of the probability of the tokens; None
            where there is none.
        match: of a decoder with a grammar; None for all others.
    """

    tokens: TokenRuns
    score: float | None = None
    log_prob: float | None = None
    match: PhraseMatch | None = None


class Decoder(Protocol):
    """Decodes one utterance, pushed in pieces; however it is cut, the hypothesis is the same.

    It is used by one thread at a time. What several utterances share (a compiled grammar, a language model)
    belongs to the first decoder, and its forks share it. Each utterance gets a fork of a decoder that has
    heard nothing, so `fork` must be cheap then.
    """

    def push(self, log_probs: F32Array) -> None:
        """Take the next frames.

        Args:
            log_probs: [t, V] float32, natural log, t >= 0; they are not kept.

        Raises:
            ConfigError: the decoder was flushed before.
        """
        ...

    def peek(self) -> Hypothesis:
        """Return what `flush` would give now, while the utterance goes on."""
        ...

    def flush(self) -> Hypothesis:
        """End the utterance and return its hypothesis. Nothing more can be pushed."""
        ...

    def fork(self) -> Decoder:
        """Return a decoder that has heard the same; what one hears later, the other does not."""
        ...


@runtime_checkable
class EncodedDecoder(Decoder, Protocol):
    """A `Decoder` that also needs the frames of the encoder, so `push_encoded` takes the place of `push`."""

    def push_encoded(self, log_probs: F32Array, encoded: F32Array) -> None:
        """Take the next frames; raises as `push`.

        Args:
            log_probs: see `push`.
            encoded: [t, D] float32, of the same frames.
        """
        ...

    def first_pass(self) -> Decoder:
        """Return a decoder that has heard nothing, is cheap, and needs log-probs alone: for partials."""
        ...


def feed(decoder: Decoder, emissions: Emissions) -> None:
    """Give a decoder the next frames, with those of the encoder if it needs them."""
    if isinstance(decoder, EncodedDecoder):
        assert emissions.encoded is not None  # a recognizer asks its backend for them
        decoder.push_encoded(emissions.log_probs, emissions.encoded)
    else:
        decoder.push(emissions.log_probs)


#: Makes the decoder of a model once, when a recognizer is made; every utterance gets a fork of it.
DecoderFactory = Callable[[Vocabulary], Decoder]


@runtime_checkable
class BundleDecoderFactory(Protocol):
    """A `DecoderFactory` that wants to see the bundle first, for what else the bundle knows of decoding."""

    def __call__(self, vocabulary: Vocabulary) -> Decoder:
        """Make the decoder of a model."""
        ...

    def for_bundle(self, bundle: Bundle) -> DecoderFactory:
        """Return the factory for the model of this bundle."""
        ...


@runtime_checkable
class BackendDecoderFactory(Protocol):
    """A `DecoderFactory` whose decoder runs a network, which wants to know what runs the encoder."""

    def __call__(self, vocabulary: Vocabulary) -> Decoder:
        """Make the decoder of a model."""
        ...

    def for_backend(self, name: str, precision: str, num_threads: int | None) -> DecoderFactory:
        """Return the factory for a decoder beside a backend with this name, precision and threads."""
        ...
