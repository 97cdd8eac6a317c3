"""Measures what quantization costs: divergence, agreement and WER against float32 on the same clips; time.

A float32 run is the reference; the same clips go through each candidate, alone and unpadded. WER needs texts,
so clips without one count only for divergence and agreement.
What this file does not do: decide anything (sensitivity.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_asr.calibration.forms import WHOLE_CLIPS, GraphForm
from edge_asr.errors import AudioError, GateError
from edge_asr.frames import OutputFrames
from edge_asr.graph.mapped import MappedGraph
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]
_RESAMPLES = 5000
_MAX_TIMING_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredClip:
    """A clip to measure on: features [T, n_mels] float32, and what is said, if known."""

    name: str
    features: F32Array
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Loss:
    """What a candidate loses against the float32 reference on the same clips.

    Attributes:
        divergence: Kullback-Leibler divergence of the reference from the candidate, mean nats per frame.
        agreement: fraction of frames with the same most likely token.
        wer_reference, wer_candidate: word error rates as fractions; None if no clip has a text.
        wer_loss_low, wer_loss_high: 95 % interval of the WER loss, paired bootstrap over the clips.
        n_frames, n_words: how many frames and words were measured.
    """

    divergence: float
    agreement: float
    wer_reference: float | None
    wer_candidate: float | None
    wer_loss_low: float | None
    wer_loss_high: float | None
    n_frames: int
    n_words: int

    @property
    def wer_loss(self) -> float | None:
        """Return the WER of the candidate less that of the reference, as a fraction; negative is better."""
        if self.wer_candidate is None or self.wer_reference is None:
            return None
        return self.wer_candidate - self.wer_reference


class Reference:
    """The float32 run over the clips, to measure candidates against.

    Args:
        model: the float32 graph.
        clips: one clip or more.
        vocabulary: the model's vocabulary.
        output_frames: how many output frames a clip gives; None takes all that the graph gives.
        form: the kind of graph.

    Raises:
        AudioError: there is no clip.
        GateError: the reference gives NaN or infinity.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        clips: Iterable[MeasuredClip],
        vocabulary: Vocabulary,
        output_frames: OutputFrames | None = None,
        form: GraphForm = WHOLE_CLIPS,
    ) -> None:
        self.form = form
        self.clips = tuple(clips)
        if not self.clips:
            raise AudioError("no clip to measure the loss of quantization on; give a manifest with speech")
        self._vocabulary = vocabulary
        self._output_frames = output_frames
        self.outputs = run_clips(model, self.clips, output_frames, form)
        self._errors, self._n_words = self._count_errors(self.outputs)

    def measure(self, candidate: onnx.ModelProto | MappedGraph) -> Int8Loss:
        """Run a candidate over the same clips.

        Raises:
            GateError: the candidate gives NaN or infinity.
        """
        outputs = run_clips(candidate, self.clips, self._output_frames, self.form)
        pairs = list(zip(self.outputs, outputs, strict=True))
        divergence = np.concatenate([np.sum(np.exp(r) * (r - c), axis=1) for r, c in pairs])
        same = np.concatenate([r.argmax(axis=1) == c.argmax(axis=1) for r, c in pairs])
        errors, n_words = self._count_errors(outputs)
        total = int(n_words.sum())
        low, high = bootstrap_difference(errors - self._errors, n_words) if total else (None, None)
        return Int8Loss(
            divergence=float(divergence.mean(dtype=np.float64)),
            agreement=float(same.mean()),
            wer_reference=float(self._errors.sum() / total) if total else None,
            wer_candidate=float(errors.sum() / total) if total else None,
            wer_loss_low=low,
            wer_loss_high=high,
            n_frames=len(same),
            n_words=total,
        )

    def _count_errors(
        self, outputs: Sequence[F32Array]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Count word errors and reference words of every clip that has a text."""
        errors, n_words = [], []
        for clip, log_probs in zip(self.clips, outputs, strict=True):
            if clip.text is None:
                continue
            ids = greedy_decode(log_probs, self._vocabulary.blank_id).ids.tolist()
            rates = compute_error_rates([clip.text], [self._vocabulary.decode(ids)], normalization="none")
            errors.append(rates.substitutions + rates.deletions + rates.insertions)
            n_words.append(rates.n_words)
        return np.asarray(errors, np.int64), np.asarray(n_words, np.int64)


def run_clips(
    model: onnx.ModelProto | MappedGraph,
    clips: Sequence[MeasuredClip],
    output_frames: OutputFrames | None = None,
    form: GraphForm = WHOLE_CLIPS,
) -> list[F32Array]:
    """Compute log-probs [T', V] of every clip alone; only of valid frames, if the rule for them is given.

    Raises:
        GateError: a value is not finite; the message names the clip.
    """
    outputs = []
    with form.open(model) as backend:
        for clip in clips:
            lengths = np.asarray([len(clip.features)], np.int64)
            log_probs: F32Array = backend.log_probs(clip.features[None], lengths)[0]
            if not np.isfinite(log_probs).all():
                raise GateError(f"the graph gives NaN or infinity on {clip.name}; its ranges are wrong")
            outputs.append(
                log_probs[: output_frames.n_valid(len(clip.features))] if output_frames else log_probs
            )
    return outputs


def bootstrap_difference(
    differences: npt.NDArray[np.int64], n_words: npt.NDArray[np.int64], *, seed: int = 0
) -> tuple[float, float]:
    """Estimate a 95 % interval of sum(differences) / sum(n_words) by a bootstrap over clips.

    Source: Bisani and Ney 2004, section 3.

    Args:
        differences: [N] errors of the candidate less those of the reference, by clip.
        n_words: [N] reference words, their sum above 0.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(differences), (_RESAMPLES, len(differences)))
    words = n_words[drawn].sum(axis=1)
    rates = differences[drawn].sum(axis=1)[words > 0] / words[words > 0]
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


def time_graphs(
    models: Sequence[onnx.ModelProto | MappedGraph],
    features: F32Array,
    *,
    repeats: int = 15,
    form: GraphForm = WHOLE_CLIPS,
) -> list[list[float]]:
    """Time each run of each graph on one clip, in seconds, on one thread, with the graphs taking turns.

    Args:
        models: graphs of that form; only ratios within one call are meaningful.
        features: [T, n_mels].
        repeats: number of turns; fewer if they take longer than 20 s in all.
        form: the kind of graphs.
    """
    batch, lengths = features[None], np.asarray([len(features)], np.int64)
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        backends = [stack.enter_context(form.open(model, num_threads=1)) for model in models]
        for backend in backends:
            backend.log_probs(batch, lengths)  # warm-up
        started = time.perf_counter()
        for turn in range(repeats):
            for backend, taken in zip(backends, times, strict=True):
                begun = time.perf_counter()
                backend.log_probs(batch, lengths)
                taken.append(time.perf_counter() - begun)
            if turn >= 2 and time.perf_counter() - started > _MAX_TIMING_S:
                break
    return times
