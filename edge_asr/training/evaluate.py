"""Losses, error rates and similarities of a model in training on dev clips, in padded batches, in float32.

CTC decodes by its best path, an attention decoder by its best next token. This is the quick measure between
steps.
What this file does not do: windows, token times, beams, files (edge_asr.runtime).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_asr.errors import VocabularyError
from edge_asr.feature_config import FeatureConfig
from edge_asr.metrics import ErrorRates, Similarities, compute_error_rates, compute_similarities
from edge_asr.model import ConformerCTC
from edge_asr.model.decoders import AttentionDecoder
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.training.corpus import Clip
from edge_asr.training.objective import sum_cross_entropy, sum_ctc
from edge_asr.vocabulary import Vocabulary


@dataclass(slots=True)
class DevSet:
    """Features of one dev source, computed once: f32 [T, n_mels] per clip.

    `targets` are the tokens of the references; None where the vocabulary cannot spell one.
    """

    name: str
    features: list[npt.NDArray[np.float32]]
    references: list[str]
    targets: list[list[int] | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the loss of a run is made of, see `edge_asr.training.decoder_config`.

    With `by_decoder` the texts that count are the decoder's, because CTC's do not improve.
    """

    ctc_weight: float = 1.0
    label_smoothing: float = 0.0
    by_decoder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """Error rates and similarities of texts."""

    rates: ErrorRates
    similarities: Similarities

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {"wer": self.rates.wer, "cer": self.rates.cer, **self.similarities.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What is known of a model on one set.

    Attributes:
        ctc: scores of CTC's texts.
        attention: scores of the decoder's texts; None without a decoder.
        by_decoder: the latter are those that count.
        loss: as trained, per token: the weighted sum of the next two.
        ctc_loss: per token.
        attention_loss: per token, ends included; None without a decoder.
    """

    ctc: TextScores
    attention: TextScores | None
    by_decoder: bool
    loss: float
    ctc_loss: float
    attention_loss: float | None

    @property
    def chosen(self) -> TextScores:
        """Scores of the texts that count."""
        return self.attention if self.by_decoder and self.attention is not None else self.ctc

    @property
    def wer(self) -> float:
        """Word error rate of the texts that count."""
        return self.chosen.rates.wer

    @property
    def cer(self) -> float:
        """Character error rate of the texts that count."""
        return self.chosen.rates.cer

    def to_dict(self) -> dict[str, float]:
        """Return the numbers that are known, by the end of their column in metrics.csv."""
        found = {**self.chosen.to_dict(), "loss": self.loss, "ctc_loss": self.ctc_loss}
        if self.attention is None or self.attention_loss is None:
            return found
        found["attention_loss"] = self.attention_loss
        for label, scores in (("ctc", self.ctc), ("attention", self.attention)):
            found |= {f"{label}_{name}": value for name, value in scores.to_dict().items()}
        return found


_TEXT_NAMES = ("wer", "cer", *Similarities.__dataclass_fields__)
SCORE_NAMES = (
    *_TEXT_NAMES,
    "loss",
    "ctc_loss",
    "attention_loss",
    *(f"{label}_{name}" for label in ("ctc", "attention") for name in _TEXT_NAMES),
)
"""Everything that `Scores.to_dict` may hold, in the order of the columns."""


def build_dev_sets(
    clips: Sequence[Clip], features: FeatureConfig, encode: Callable[[str], list[int]]
) -> list[DevSet]:
    """Build one `DevSet` per source name, in the order of the clips; `encode` is the tokenizer's."""
    extractor = FeatureExtractor(features)
    sets: dict[str, DevSet] = {}
    for clip in clips:
        dev = sets.setdefault(clip.source, DevSet(clip.source, [], []))
        dev.features.append(extractor(clip.load(features.sample_rate)))
        dev.references.append(clip.text)
        try:
            dev.targets.append(encode(clip.text))
        except VocabularyError:
            dev.targets.append(None)
    return list(sets.values())


@torch.no_grad()
def decode_greedy(
    model: ConformerCTC,
    features: Sequence[npt.NDArray[np.float32]],
    vocabulary: Vocabulary,
    *,
    max_batch_frames: int,
    chunk_frames: int | None = None,
    left_chunks: int | None = None,
) -> list[str]:
    """Decode best-path texts, one per feature matrix [T, n_mels]; puts the model in eval mode."""
    texts = [""] * len(features)
    for chosen, encoded, lens in _encode(model, features, max_batch_frames, chunk_frames, left_chunks):
        for index, text in zip(chosen, _best_path(model.head(encoded), lens, vocabulary), strict=True):
            texts[index] = text
    return texts


@torch.no_grad()
def decode_attention(
    decoder: AttentionDecoder, encoded: Tensor, lens: Tensor, blank_id: int
) -> list[list[int]]:
    """Choose the best next token until the end, at most one token a frame; tokens of every row."""
    cross, state = decoder.cross(encoded), decoder.initial_state(len(encoded))
    tokens = torch.full((len(encoded), 1), decoder.sos_id, device=encoded.device)
    rows: list[list[int]] = [[] for _ in encoded]
    is_open = [True] * len(rows)
    limits = lens.tolist()
    while any(is_open):
        log_probs, state = decoder.advance(tokens, state, cross, lens)
        if blank_id < decoder.n_tokens:
            log_probs[..., blank_id] = -torch.inf
        tokens = log_probs.argmax(dim=-1)
        for index, token in enumerate(tokens[:, 0].tolist()):
            is_open[index] &= token != decoder.eos_id and len(rows[index]) < limits[index]
            if is_open[index]:
                rows[index].append(token)
    return rows


@torch.no_grad()
def evaluate_sets(
    model: ConformerCTC,
    sets: Sequence[DevSet],
    vocabulary: Vocabulary,
    *,
    max_batch_frames: int,
    weights: Weights = Weights(),
) -> dict[str, Scores]:
    """Score the model on each set by its name, with full context; puts it in eval mode."""
    return {dev.name: _score(model, dev, vocabulary, max_batch_frames, weights) for dev in sets}


def _score(
    model: ConformerCTC, dev: DevSet, vocabulary: Vocabulary, max_batch_frames: int, weights: Weights
) -> Scores:
    decoder, n_clips = model.decoder, len(dev.references)
    by_ctc, by_decoder = [""] * n_clips, [""] * n_clips
    ctc = attention = 0.0
    n_tokens = n_targets = 0
    for chosen, encoded, lens in _encode(model, dev.features, max_batch_frames):
        log_probs = model.head(encoded)
        for index, text in zip(chosen, _best_path(log_probs, lens, vocabulary), strict=True):
            by_ctc[index] = text
        if decoder is not None:
            for index, ids in zip(
                chosen, decode_attention(decoder, encoded, lens, vocabulary.blank_id), strict=True
            ):
                by_decoder[index] = vocabulary.decode([i for i in ids if i < len(vocabulary)])
        known = [
            (row, target)
            for row, index in enumerate(chosen)
            if dev.targets and (target := dev.targets[index]) is not None
        ]
        if not known:
            continue
        rows = torch.tensor([row for row, _ in known], device=lens.device)
        targets = torch.tensor([token for _, target in known for token in target], device=lens.device)
        target_lens = torch.tensor([len(target) for _, target in known], device=lens.device)
        n_tokens, n_targets = n_tokens + len(targets), n_targets + len(known)
        ctc += float(sum_ctc(log_probs[rows], lens[rows], targets, target_lens, vocabulary.blank_id))
        if decoder is not None:
            attention += float(
                sum_cross_entropy(
                    decoder, encoded[rows], lens[rows], targets, target_lens, weights.label_smoothing
                )
            )
    ctc /= max(n_tokens, 1)
    attention /= max(n_tokens + n_targets, 1)
    share = weights.ctc_weight if decoder is not None else 1.0
    return Scores(
        ctc=_score_texts(dev, by_ctc),
        attention=None if decoder is None else _score_texts(dev, by_decoder),
        by_decoder=weights.by_decoder,
        loss=share * ctc + (1 - share) * attention,
        ctc_loss=ctc,
        attention_loss=None if decoder is None else attention,
    )


def _score_texts(dev: DevSet, texts: list[str]) -> TextScores:
    return TextScores(
        rates=compute_error_rates(dev.references, texts),
        similarities=compute_similarities(dev.references, texts),
    )


def _encode(
    model: ConformerCTC,
    features: Sequence[npt.NDArray[np.float32]],
    max_batch_frames: int,
    chunk_frames: int | None = None,
    left_chunks: int | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Run the encoder over batches: yield the clips of each, its outputs (B, T', D) and lengths (B,)."""
    model.eval()
    device = next(model.parameters()).device
    for chosen in _batches_by_length([len(row) for row in features], max_batch_frames):
        lens = [len(features[index]) for index in chosen]
        padded = torch.zeros(len(chosen), max(lens), features[chosen[0]].shape[1])
        for row, index in enumerate(chosen):
            padded[row, : lens[row]] = torch.from_numpy(features[index])
        encoded, output_lens = model.encode(
            padded.to(device),
            torch.tensor(lens, device=device),
            chunk_frames=chunk_frames,
            left_chunks=left_chunks,
        )
        yield chosen, encoded, output_lens


def _best_path(log_probs: Tensor, lens: Tensor, vocabulary: Vocabulary) -> list[str]:
    rows = log_probs.float().cpu().numpy()
    runs = [greedy_decode(rows[row, :end], vocabulary.blank_id) for row, end in enumerate(lens.tolist())]
    return [vocabulary.decode(run.ids.tolist()) for run in runs]


def _batches_by_length(lens: Sequence[int], max_batch_frames: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(range(len(lens)), key=lambda i: -lens[i]):
        if batches and (len(batches[-1]) + 1) * lens[batches[-1][0]] <= max_batch_frames:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
