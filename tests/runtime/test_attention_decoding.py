"""Rescoring and search with an attention decoder, against sums over all paths and all texts.

The network is a fake (fake_attention.py); real ones are in tests/export/test_decoder_export.py.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from decoder_contract import check_decoder
from fake_attention import FakeAttentionNetwork
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import STREAM_SAMPLE_RATE, read_audio
from edge_asr.errors import ConfigError
from edge_asr.runtime import Recognizer, rescoring_decoder, streaming_decoders
from edge_asr.runtime.decoding.attention.ctc_prefix import CtcPrefixScorer
from edge_asr.runtime.decoding.attention.rescoring import RescoringDecoder, ScoreWeights, score_texts
from edge_asr.runtime.decoding.attention.search import (
    AttentionDecoder,
    SearchOptions,
    align_tokens,
    search_texts,
)
from edge_asr.runtime.decoding.attention.segments import SegmentDecoder, find_pause
from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.decoding.decoder import Emissions, EncodedDecoder, feed
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import WindowedDecoder
from edge_asr.runtime.live.recognizer import _make_partial_decoder
from edge_asr.runtime.live.stream import LiveConfig, LiveStream

F32Array = npt.NDArray[np.float32]
V, D, BLANK, BOUNDARY = 6, 5, 5, 0  # the decoder's end is one more token, 6
ANY_SEED = st.integers(0, 2**32 - 1)


def random_log_probs(seed: int, n_frames: int, n_classes: int = V) -> F32Array:
    random = np.random.default_rng(seed)
    return np.log(random.dirichlet(np.full(n_classes, 0.3), n_frames) + 1e-9).astype(np.float32)


def encoded_of(log_probs: F32Array) -> F32Array:
    """Frames of an encoder that belong to these log-probs."""
    return np.tanh(log_probs[:, :D])


def network(**options: object) -> FakeAttentionNetwork:
    return FakeAttentionNetwork(V + 1, D, **options)  # type: ignore[arg-type]


def ids_of(*tokens: int) -> npt.NDArray[np.int64]:
    return np.array(tokens, np.int64)


# --- scores of whole texts ---


def test_a_text_has_the_score_of_its_steps() -> None:
    decoder = network()
    memory = decoder.attend(encoded_of(random_log_probs(0, 9)))
    texts = [ids_of(1, 2, 3), ids_of(), ids_of(4, 4)]
    scores = score_texts(decoder, memory, texts)
    for text, score in zip(texts, scores, strict=True):
        expected, state, last = 0.0, decoder.start(1), decoder.sos_id
        for token in (*text.tolist(), decoder.eos_id):
            log_probs, state = decoder.advance(np.array([[last]]), state, memory)
            expected, last = expected + float(log_probs[0, 0, token]), token
        assert score == pytest.approx(expected, abs=1e-5)
    backward = score_texts(decoder, memory, [ids_of(3, 2, 1)], reverse=True)
    assert backward == pytest.approx(scores[:1])


def test_many_texts_take_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = network()
    memory = decoder.attend(encoded_of(random_log_probs(0, 9)))
    texts = [ids_of(*range(n % 4)) for n in range(9)]
    whole = score_texts(decoder, memory, texts)
    monkeypatch.setattr("edge_asr.runtime.decoding.attention.rescoring._BATCH_VALUES", 60)
    decoder.shapes.clear()
    assert score_texts(decoder, memory, texts) == pytest.approx(whole, abs=1e-6)
    assert {shape[0] for shape in decoder.shapes} == {2, 1}


# --- rescoring ---


def rescoring(weights: ScoreWeights, *, right: bool = False, max_frames: int = 99) -> RescoringDecoder:
    return RescoringDecoder(
        BeamDecoder(BLANK),
        network(),
        network(seed=1) if right else None,
        weights=weights,
        boundary_id=BOUNDARY,
        max_frames=max_frames,
    )


def test_the_scores_are_mixed_as_documented() -> None:
    log_probs = random_log_probs(3, 12)
    encoded = encoded_of(log_probs)
    plain = BeamDecoder(BLANK)
    plain.push(log_probs)
    found = rescoring(ScoreWeights(ctc=0.4, reverse=0.25), right=True).rescore(log_probs, encoded)
    assert len(found) == len(plain.n_best()) > 3
    ctc = {tuple(h.tokens.ids.tolist()): h for h in plain.n_best()}
    left, right = network(), network(seed=1)
    for hypothesis in found:
        ids = hypothesis.tokens.ids
        first = ctc[tuple(ids.tolist())]
        assert first.log_prob is not None
        text = ids_of(*map(int, "".join(map(str, ids)).strip("0")))  # boundaries at its ends are CTC's alone
        forward = score_texts(left, left.attend(encoded), [text])[0]
        backward = score_texts(right, right.attend(encoded), [text], reverse=True)[0]
        expected = 0.6 * (0.75 * forward + 0.25 * backward) + 0.4 * first.log_prob
        assert hypothesis.score == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(hypothesis.tokens.first_frames, first.tokens.first_frames)
    scores = [hypothesis.score or 0.0 for hypothesis in found]
    assert scores == sorted(scores, reverse=True)


def test_one_run_scores_all_texts() -> None:
    log_probs = random_log_probs(3, 12)
    decoder = rescoring(ScoreWeights())
    decoder.rescore(log_probs, encoded_of(log_probs))
    (shape,) = decoder._network.shapes  # type: ignore[attr-defined]
    assert shape[0] == 8


def test_all_of_ctc_is_the_beam_search() -> None:
    log_probs = random_log_probs(4, 20)
    plain = BeamDecoder(BLANK)
    plain.push(log_probs)
    decoder = rescoring(ScoreWeights(ctc=1.0))
    decoder.push_encoded(log_probs, encoded_of(log_probs))
    assert np.array_equal(decoder.flush().tokens.ids, plain.flush().tokens.ids)


@pytest.mark.parametrize("weights", [{"ctc": 1.5}, {"ctc": -0.1}, {"reverse": 2.0}])
def test_shares_outside_0_to_1_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="it is a share, give 0 to 1"):
        ScoreWeights(**weights)


def test_a_direction_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"reverse_weight is 0\.3, and the bundle has no decoder from right"
    ):
        rescoring(ScoreWeights(reverse=0.3))


# --- CTC's prefixes ---


def test_prefix_scores_are_sums_over_all_paths() -> None:
    n_frames, n_classes, blank = 5, 3, 2
    log_probs = random_log_probs(0, n_frames, n_classes)
    whole: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(n_classes), repeat=n_frames):
        text = tuple(t for t, _ in itertools.groupby(path) if t != blank)
        whole[text] += float(np.exp(sum(log_probs[t, c] for t, c in enumerate(path))))
    scorer = CtcPrefixScorer(log_probs, blank)
    for text in [(), (0,), (0, 0), (0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1)]:
        state, last = scorer.start(), -1
        for token in text:
            state, last = scorer.extend(state, ids_of(last), ids_of(token)), token
        begins = sum(p for other, p in whole.items() if other[: len(text)] == text)
        assert np.exp(state.scores[0]) == pytest.approx(begins, abs=1e-6)
        assert np.exp(scorer.finish(state)[0]) == pytest.approx(whole[text], abs=1e-6)


# --- search ---


@pytest.mark.parametrize("keep_ended", [True, False])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_a_wide_beam_finds_the_best_of_all_texts(
    keep_ended: bool, length_penalty: float, ctc_weight: float
) -> None:
    n_frames, decoder = 4, FakeAttentionNetwork(4, D, seed=5)  # tokens 0 to 2, and the end
    log_probs = random_log_probs(1, n_frames, D)
    blank = D - 1
    memory, scorer = decoder.attend(log_probs), CtcPrefixScorer(log_probs, blank)
    options = SearchOptions(
        beam_size=200, ctc_weight=ctc_weight, length_penalty=length_penalty, keep_ended=keep_ended
    )
    found = search_texts(decoder, memory, options, ctc=scorer)[0]
    ranked = {}
    for n in range(n_frames):
        for text in itertools.product(range(3), repeat=n):
            state, last = scorer.start(), -1
            for token in text:
                state, last = scorer.extend(state, ids_of(last), ids_of(token)), token
            attention = score_texts(decoder, memory, [ids_of(*text)])[0]
            score = (1 - ctc_weight) * attention
            if ctc_weight:
                score += ctc_weight * scorer.finish(state)[0]
            ranked[text] = score / (max(n, 1) if keep_ended else n + 1) ** length_penalty
    best = max(ranked, key=ranked.__getitem__)
    assert len(found.ids) == n_frames or found.ids == best
    if len(found.ids) < n_frames:  # one that was not cut off
        assert found.ranked == pytest.approx(ranked[best], abs=1e-5)


def test_beams_are_one_run_a_step_and_independent() -> None:
    """Texts found together have the scores that each has alone."""
    decoder = network(seed=3)
    memory = decoder.attend(encoded_of(random_log_probs(2, 12)))
    found = search_texts(decoder, memory, SearchOptions(beam_size=4, ctc_weight=0.0, length_penalty=0.0))
    assert max(shape[0] for shape in decoder.shapes) <= 4
    assert all(shape[1] == 1 for shape in decoder.shapes)
    whole = [text for text in found if len(text.ids) < memory.n_frames]
    assert len(whole) > 1
    alone = score_texts(decoder, memory, [ids_of(*text.ids) for text in whole])
    assert alone == pytest.approx([text.score for text in whole], abs=1e-5)


@pytest.mark.parametrize("keep_ended", [True, False])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_decoder_that_never_ends_is_stopped(keep_ended: bool, ctc_weight: float) -> None:
    decoder = network(ends=False)
    log_probs = random_log_probs(0, 30)
    memory, scorer = decoder.attend(encoded_of(log_probs)), CtcPrefixScorer(log_probs, BLANK)
    options = SearchOptions(ctc_weight=ctc_weight, keep_ended=keep_ended)
    found = search_texts(decoder, memory, options, ctc=scorer, banned=[BLANK])
    assert len(decoder.shapes) == 30
    assert all(len(text.ids) <= 30 and BLANK not in text.ids for text in found)
    fewer = SearchOptions(ctc_weight=ctc_weight, keep_ended=keep_ended, max_tokens=3)
    assert max(len(text.ids) for text in search_texts(decoder, memory, fewer, ctc=scorer)) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beam_size": 0}, "beam_size is 0; give 1 or more"),
        ({"ctc_weight": 1.1}, r"ctc_weight is 1\.1; it is a share, give 0 to 1"),
        ({"length_penalty": -1.0}, r"length_penalty is -1\.0; give 0 to 5"),
        ({"max_tokens": 0}, "max_tokens is 0; give 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SearchOptions(**options)  # type: ignore[arg-type]


# --- times ---


def test_tokens_are_where_ctc_heard_them() -> None:
    path = [BLANK, 1, 1, BLANK, 2, BLANK, 2, 2, 3, BLANK]
    log_probs = np.full((len(path), V), -9.0, np.float32)
    log_probs[np.arange(len(path)), path] = -0.01
    runs = align_tokens(log_probs, ids_of(1, 2, 2, 3), BLANK)
    assert runs.first_frames.tolist() == [1, 4, 6, 8]
    assert runs.last_frames.tolist() == [2, 4, 7, 8]
    assert runs.confidences == pytest.approx(np.exp(-0.01), abs=1e-6)


def test_tokens_that_ctc_has_no_room_for_are_spread() -> None:
    runs = align_tokens(random_log_probs(0, 4), ids_of(1, 1, 1), BLANK)
    assert runs.first_frames.tolist() == runs.last_frames.tolist() == [0, 1, 2]
    assert len(align_tokens(random_log_probs(0, 4), ids_of(), BLANK)) == 0


# --- the contract of decoders ---


class StackedFrames:
    """A decoder of frames that hold the log-probs and, behind them, the frames of the encoder."""

    def __init__(self, decoder: SegmentDecoder) -> None:
        self._decoder = decoder

    def push(self, log_probs: F32Array) -> None:
        self._decoder.push_encoded(log_probs, encoded_of(log_probs))

    def __getattr__(self, name: str) -> object:
        return getattr(self._decoder, name)

    def fork(self) -> StackedFrames:
        return StackedFrames(self._decoder.fork())


def attention(max_frames: int = 99) -> AttentionDecoder:
    return AttentionDecoder(
        GreedyDecoder(BLANK),
        network(),
        SearchOptions(beam_size=3),
        blank_id=BLANK,
        boundary_id=BOUNDARY,
        max_frames=max_frames,
    )


def short_rescoring(max_frames: int = 99) -> RescoringDecoder:
    return rescoring(ScoreWeights(), max_frames=max_frames)


@pytest.mark.parametrize("make", [attention, short_rescoring])
@settings(max_examples=8)
@given(
    seed=ANY_SEED,
    n_frames=st.integers(0, 40),
    max_frames=st.sampled_from([2, 9, 99]),
    cuts=st.lists(st.floats(0, 1), max_size=3),
)
def test_the_contract_of_decoders(
    make: Callable[[int], SegmentDecoder], seed: int, n_frames: int, max_frames: int, cuts: list[float]
) -> None:
    decoder = StackedFrames(make(max_frames))
    check_decoder(decoder, random_log_probs(seed, n_frames), cuts)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [attention, short_rescoring])
def test_memory_is_bounded_and_partials_have_a_first_pass(make: Callable[[int], SegmentDecoder]) -> None:
    decoder = make(20)
    assert isinstance(decoder, EncodedDecoder)
    assert not isinstance(decoder.first_pass(), EncodedDecoder)
    log_probs = random_log_probs(0, 300)
    for begin in range(0, 300, 7):
        decoder.push_encoded(log_probs[begin : begin + 7], encoded_of(log_probs[begin : begin + 7]))
        assert sum(map(len, decoder._waiting)) <= 20
    assert len(decoder.flush().tokens) > 0


@pytest.mark.parametrize("make", [attention, short_rescoring])
def test_frames_that_do_not_belong_together_are_refused(make: Callable[[], SegmentDecoder]) -> None:
    decoder, log_probs = make(), random_log_probs(0, 4)
    with pytest.raises(ConfigError, match="needs the frames of the encoder too"):
        decoder.push(log_probs)
    with pytest.raises(ConfigError, match="4 frames of log-probs and 3 of the encoder"):
        decoder.push_encoded(log_probs, encoded_of(log_probs)[:3])
    decoder.flush()
    with pytest.raises(ConfigError, match="was flushed"):
        decoder.push_encoded(log_probs, encoded_of(log_probs))


def test_a_long_utterance_is_cut_in_its_longest_pause() -> None:
    path = np.full(100, 1)
    path[10:30] = BLANK  # too early
    path[60:63] = BLANK
    path[80:90] = BLANK
    log_probs = np.full((100, V), -9.0, np.float32)
    log_probs[np.arange(100), path] = -0.01
    assert find_pause(log_probs, BLANK) == 85
    path[50:] = 1
    log_probs[50:] = log_probs[0]
    log_probs[71, BLANK] = -1.0
    assert find_pause(log_probs, BLANK) == 71


def test_words_of_two_segments_stay_apart() -> None:
    """Both say one word; the texts of a decoder have no word boundary at their ends."""
    path = np.array([1, BLANK, 2, *[BLANK] * 6, 3, BLANK, 4])
    log_probs = np.full((len(path), V), -12.0, np.float32)
    log_probs[np.arange(len(path)), path] = -0.001
    whole, cut = (rescoring(ScoreWeights(ctc=1.0), max_frames=n) for n in (99, 10))
    for decoder in (whole, cut):
        decoder.push_encoded(log_probs, encoded_of(log_probs))
    assert whole.flush().tokens.ids.tolist() == [1, 2, 3, 4]
    assert cut.flush().tokens.ids.tolist() == [1, 2, BOUNDARY, 3, 4]


# --- live ---


def test_finals_of_a_stream_are_rescored_and_partials_are_not(joint_bundle: Path, sample_path: Path) -> None:
    waveform = read_audio(sample_path, STREAM_SAMPLE_RATE)[: 3 * STREAM_SAMPLE_RATE]
    decoder = rescoring_decoder(ctc_weight=0.0, reverse_weight=0.0)
    with Recognizer.load(joint_bundle, decoder=decoder, num_threads=1) as recognizer:
        make = streaming_decoders(recognizer, "streaming")
        assert make is not None
        live = make()
        history = AudioHistory()
        history.append(waveform)
        live.begin(0)
        model = recognizer.streaming_model()
        features = FeatureExtractor(recognizer.features).stream().push(waveform)
        state = model.start()
        heard = Emissions.join([model.push_features(state, features), model.finish(state)])
        partial, final = recognizer.for_partials().new_decoder(), recognizer.new_decoder()
        feed(partial, heard)
        feed(final, heard[: round(3000 / model.geometry.frame_ms)])  # what has begun by the end of the sound
        ids = {name: d.flush().tokens.ids.tolist() for name, d in (("partial", partial), ("final", final))}
        assert [token.id for token in live.decode(history).tokens] == ids["partial"]
        assert [token.id for token in live.transcript(history, history.end).tokens] == ids["final"]
        assert isinstance(partial, BeamDecoder)
        assert isinstance(final, RescoringDecoder)
        windowed = _make_partial_decoder(recognizer, "windowed", 8.0)
        assert isinstance(windowed, WindowedDecoder)
        assert isinstance(windowed._transcriber, Recognizer)
        assert isinstance(windowed._transcriber.new_decoder(), BeamDecoder)
        model.gives_encoded = False
        with pytest.raises(ConfigError, match="gives no frames of its encoder here"):
            LiveStream(recognizer, make(), LiveConfig(final="stream"), lambda event: None)
        LiveStream(recognizer, make(), LiveConfig(final="offline"), lambda event: None)
