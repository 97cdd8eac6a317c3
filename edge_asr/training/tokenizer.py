"""Text to token ids: characters, or SentencePiece BPE trained on the training texts.

The ids are those of the `Vocabulary` that the model outputs; the blank is last and never encoded.
Decoding is `Vocabulary.decode`, which needs no SentencePiece.
"""

from __future__ import annotations

import io
import string
from collections.abc import Sequence
from typing import Any

from edge_asr.errors import ConfigError, TrainingError, VocabularyError, require
from edge_asr.training.config import TokenizerConfig
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary


class CharTokenizer:
    """One token per character."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.model: bytes | None = None

    def encode(self, text: str) -> list[int]:
        """Encode `text` as token ids.

        Raises:
            VocabularyError: a character is outside the vocabulary.
        """
        return self.vocabulary.encode_characters(text)


class SentencePieceTokenizer:
    """Pieces of a SentencePiece model; `model` is the serialized model, kept with checkpoints."""

    def __init__(self, model: bytes, vocabulary: Vocabulary | None = None) -> None:
        sentencepiece: Any = require("sentencepiece", extra="train")
        self.model: bytes | None = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        n_pieces = self._processor.get_piece_size()
        pieces = [self._processor.id_to_piece(index) for index in range(n_pieces)]
        self.vocabulary = vocabulary or Vocabulary.from_pieces(pieces)
        if list(self.vocabulary.tokens[:n_pieces]) != pieces:
            raise VocabularyError(
                "tokenizer.model and the vocabulary disagree; take both from the same checkpoint"
            )

    def encode(self, text: str) -> list[int]:
        """Encode `text` as token ids.

        Raises:
            VocabularyError: a character is outside the vocabulary.
        """
        ids = [int(index) for index in self._processor.encode(text)]
        if self._processor.unk_id() in ids:
            pieces = self._processor.encode(text, out_type=str)
            unknown = [
                piece for piece, index in zip(pieces, ids, strict=True) if index == self._processor.unk_id()
            ]
            raise VocabularyError(f"{''.join(unknown)!r} not in the vocabulary (text {text!r})")
        return ids


Tokenizer = CharTokenizer | SentencePieceTokenizer


def tokenizer_from_vocabulary(vocabulary: Vocabulary, model: bytes | None) -> Tokenizer:
    """Return the tokenizer of a checkpoint.

    Raises:
        TrainingError: a sentencepiece vocabulary lacks its tokenizer.model.
    """
    if vocabulary.kind == "char":
        return CharTokenizer(vocabulary)
    if model is None:
        raise TrainingError(
            "this checkpoint has a sentencepiece vocabulary but no tokenizer.model, so text cannot be "
            "encoded; add the file, or set override_init: true for a new vocabulary"
        )
    return SentencePieceTokenizer(model, vocabulary)


def train_tokenizer(
    config: TokenizerConfig, texts: Sequence[str], weights: Sequence[float], extra_texts: Sequence[str] = ()
) -> Tokenizer:
    """Build a tokenizer from the training texts.

    Args:
        config: kind and size.
        texts: normalized training texts.
        weights: how often each text is seen; rounded, at least once.
        extra_texts: further sentences, for SentencePiece only.

    Raises:
        ConfigError: there is no text, or the texts cannot fill vocab_size.
    """
    if not texts:
        raise ConfigError("no usable training text to build a vocabulary from; see the bad rows above")
    if config.kind == "char":
        characters = config.characters or "".join(sorted({c for text in texts for c in text}))
        return CharTokenizer(Vocabulary.from_characters(characters))
    sentences = [
        text for text, weight in zip(texts, weights, strict=True) for _ in range(max(1, round(weight)))
    ]
    sentences += extra_texts
    model = _train_sentencepiece(config, sentences)
    return SentencePieceTokenizer(model)


def _train_sentencepiece(config: TokenizerConfig, sentences: list[str]) -> bytes:
    """Train BPE, with single letters repeated until each letter word is one piece.

    User-defined symbols would do that too, but they would also be cut out of longer words.
    """
    sentencepiece: Any = require("sentencepiece", extra="train")
    letters = [c for c in string.ascii_lowercase if any(c in text for text in sentences)]
    spelled = " ".join(letters)
    n_repeats = max(1, len(sentences) // 50)
    while True:
        extra = [spelled] * n_repeats if config.letters_as_words else []
        writer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([*sentences, *extra]),
                model_writer=writer,
                model_type="bpe",
                vocab_size=config.vocab_size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ConfigError(
                f"SentencePiece cannot make {config.vocab_size} pieces of these texts "
                f"({' '.join(str(error).split())}); change tokenizer.vocab_size"
            ) from error
        model = writer.getvalue()
        pieces = set(SentencePieceTokenizer(model).vocabulary.tokens)
        missing = [c for c in letters if WORD_BOUNDARY + c not in pieces]
        if not missing or not config.letters_as_words:
            return model
        if n_repeats > 100 * len(sentences):
            raise ConfigError(
                f"letters {missing} do not fit as pieces into vocab_size {config.vocab_size}; "
                f"raise it to {2 * len(letters) + 40} or more, or set letters_as_words: false"
            )
        n_repeats *= 2
