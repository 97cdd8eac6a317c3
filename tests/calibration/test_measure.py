"""Losses against scipy, jiwer and a loop over resamples; the identical model loses nothing."""

from __future__ import annotations

import itertools
import math

import jiwer
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import scipy.special
import scipy.stats
from onnx import numpy_helper

from edge_asr.calibration.measure import (
    Int8Loss,
    MeasuredClip,
    Reference,
    bootstrap_difference,
    run_clips,
    time_graphs,
)
from edge_asr.errors import AudioError, GateError
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
TEXTS = ("ab c", "c", None, "b b abc")


@pytest.fixture(scope="module")
def clips() -> tuple[MeasuredClip, ...]:
    """Four of 20 to 50 frames; one without a text."""
    generator = np.random.default_rng(3)
    return tuple(
        MeasuredClip(
            name=f"clip {number}",
            features=generator.standard_normal((20 + 10 * number, 8)).astype(np.float32),
            text=text,
        )
        for number, text in enumerate(TEXTS)
    )


def changed(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy whose head is scaled and shifted: another distribution."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (head,) = (i for i in copy.graph.initializer if i.name == "projection")
    weight = numpy_helper.to_array(head) * np.float32(factor)
    weight = weight + np.float32(0.1) * np.random.default_rng(4).standard_normal(weight.shape)
    head.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), head.name))
    return copy


def decode(log_probs: F32Array) -> str:
    """Greedy CTC by itertools; the last of "abc_-" is the blank."""
    best = [key for key, _ in itertools.groupby(log_probs.argmax(axis=1).tolist())]
    return " ".join("".join("abc -"[index] for index in best if index != 4).split())


def test_an_identical_model_loses_nothing(
    hand_made: onnx.ModelProto, clips: tuple[MeasuredClip, ...], hand_made_vocabulary: Vocabulary
) -> None:
    loss = Reference(hand_made, clips, hand_made_vocabulary).measure(hand_made)
    assert (loss.divergence, loss.agreement, loss.wer_loss) == (0.0, 1.0, 0.0)
    assert (loss.wer_loss_low, loss.wer_loss_high) == (0.0, 0.0)
    assert loss.wer_reference == loss.wer_candidate > 0  # type: ignore[operator]
    assert (loss.n_frames, loss.n_words) == (20 + 30 + 40 + 50, 2 + 1 + 3)


def test_divergence_agreement_and_wer_are_those_of_other_libraries(
    hand_made: onnx.ModelProto, clips: tuple[MeasuredClip, ...], hand_made_vocabulary: Vocabulary
) -> None:
    candidate = changed(hand_made, 0.8)
    reference = Reference(hand_made, clips, hand_made_vocabulary)
    loss = reference.measure(candidate)
    before, after = run_clips(hand_made, clips), run_clips(candidate, clips)
    p = np.exp(np.concatenate(before).astype(np.float64))
    q = np.exp(np.concatenate(after).astype(np.float64))
    # float32 log-probs of some tens: their rounding is 1e-6.
    assert loss.divergence == pytest.approx(scipy.special.rel_entr(p, q).sum(axis=1).mean(), abs=1e-5)
    assert loss.divergence > 0.01
    assert loss.agreement == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    assert 0.3 < loss.agreement < 1
    spoken = [c.text for c in clips if c.text is not None]
    for outputs, found in ((before, loss.wer_reference), (after, loss.wer_candidate)):
        heard = [decode(o) for o, c in zip(outputs, clips, strict=True) if c.text is not None]
        assert found == pytest.approx(jiwer.wer(spoken, heard))
    assert loss.wer_loss == pytest.approx(loss.wer_candidate - loss.wer_reference)  # type: ignore[operator]
    assert loss.wer_loss_low <= loss.wer_loss <= loss.wer_loss_high  # type: ignore[operator]


def test_without_texts_there_is_no_wer(
    hand_made: onnx.ModelProto, clips: tuple[MeasuredClip, ...], hand_made_vocabulary: Vocabulary
) -> None:
    untold = [MeasuredClip(name=c.name, features=c.features, text=None) for c in clips]
    loss = Reference(hand_made, untold, hand_made_vocabulary).measure(changed(hand_made, 0.8))
    told = Reference(hand_made, clips, hand_made_vocabulary).measure(changed(hand_made, 0.8))
    assert (loss.divergence, loss.agreement, loss.n_frames) == (
        told.divergence,
        told.agreement,
        told.n_frames,
    )
    nothing = (loss.wer_reference, loss.wer_candidate, loss.wer_loss, loss.wer_loss_low, loss.wer_loss_high)
    assert nothing == (None,) * 5
    assert loss.n_words == 0


def test_values_that_are_not_finite_fail_and_name_the_clip(
    hand_made: onnx.ModelProto, clips: tuple[MeasuredClip, ...], hand_made_vocabulary: Vocabulary
) -> None:
    broken = changed(hand_made, math.nan)
    message = "the graph gives NaN or infinity on clip 0; its ranges are wrong"
    with pytest.raises(GateError, match=message):
        Reference(broken, clips, hand_made_vocabulary)
    with pytest.raises(GateError, match=message):
        Reference(hand_made, clips, hand_made_vocabulary).measure(broken)


def test_no_clip_is_refused(hand_made: onnx.ModelProto, hand_made_vocabulary: Vocabulary) -> None:
    with pytest.raises(AudioError, match="no clip to measure the loss of quantization on"):
        Reference(hand_made, [], hand_made_vocabulary)


def test_interval_is_scipys_paired_bootstrap() -> None:
    generator = np.random.default_rng(5)
    n_words = generator.integers(1, 20, 60)
    differences = generator.integers(-2, 4, 60)
    low, high = bootstrap_difference(differences, n_words)
    expected = scipy.stats.bootstrap(
        (differences, n_words),
        lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=generator,
    ).confidence_interval
    # Two sets of 5000 resamples: their ends differ by some hundredths of the width.
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.06 * width)
    assert high == pytest.approx(expected.high, abs=0.06 * width)
    assert bootstrap_difference(differences, n_words) == (low, high)
    assert bootstrap_difference(differences, n_words, seed=1) != (low, high)


def test_interval_of_few_clips() -> None:
    assert bootstrap_difference(np.asarray([2]), np.asarray([8])) == (0.25, 0.25)
    # One clip with words among clips of none: resamples without a word say nothing.
    assert bootstrap_difference(np.asarray([0, 1, 0]), np.asarray([0, 4, 0])) == (0.25, 0.25)
    low, high = bootstrap_difference(np.asarray([0, 0, 0, 5]), np.asarray([5, 5, 5, 5]))
    assert low == 0.0
    assert 0.25 < high <= 1.0


def test_wer_loss_is_signed() -> None:
    numbers = {"divergence": 0.0, "agreement": 1.0, "wer_loss_low": -0.1, "wer_loss_high": 0.0}
    loss = Int8Loss(**numbers, wer_reference=0.2, wer_candidate=0.15, n_frames=1, n_words=1)
    assert loss.wer_loss == pytest.approx(-0.05)


def test_times_are_of_every_graph_and_turn(
    hand_made: onnx.ModelProto, clips: tuple[MeasuredClip, ...]
) -> None:
    times = time_graphs([hand_made, hand_made, hand_made], clips[3].features, repeats=4)
    assert [len(taken) for taken in times] == [4, 4, 4]
    assert all(0 < second < 10 for taken in times for second in taken)
