"""Partials from a streaming graph: those of the utterance at once, up to its newest sound, however it came.

The model has random weights, so its text means nothing and changes all the time; real graph, real speech.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from listen_program import Program
from tones import ToneRecognizer
from virtual_microphone import VirtualMicrophone

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.cli.main import cli
from edge_asr.errors import BackendError, BundleError, ConfigError
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.bulk import transcribe_files
from edge_asr.runtime.decoding.decoder import Decoder
from edge_asr.runtime.decoding.decoder import Hypothesis as HypothesisOfDecoder
from edge_asr.runtime.decoding.greedy import GreedyDecoder, greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.events import Final, Partial
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialHypothesis
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import FileSource
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.live.streaming_decoder import StreamingDecoder, streaming_decoders
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.stream_steps import HostSteps
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.runtime.transcript import Token, tokens_from_runs
from edge_asr.vocabulary import Vocabulary

RATE = 16_000
Waveform = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(streaming_bundle: Path) -> Bundle:
    return Bundle.load(streaming_bundle)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> StreamingModel:
    return StreamingModel.load(bundle, num_threads=1)


@pytest.fixture(scope="module")
def speech(sample_path: Path) -> Waveform:
    return read_audio(sample_path)


@pytest.fixture
def decoder(model: StreamingModel, bundle: Bundle) -> StreamingDecoder:
    return StreamingDecoder(model, bundle.info.features, bundle.vocabulary)


def follow(
    decoder: StreamingDecoder, speech: Waveform, start: int, cuts: list[int]
) -> list[PartialHypothesis]:
    """Hypotheses of an utterance that begins at `start`, asked for at each cut."""
    history = AudioHistory()
    decoder.begin(start)
    hypotheses = []
    for begin, end in zip([0, *cuts], [*cuts, len(speech)], strict=True):
        history.append(speech[begin:end])
        if history.end >= start:
            hypotheses.append(decoder.decode(history))
            assert hypotheses[-1].end == history.end
    return hypotheses


def tokens_at_once(model: StreamingModel, bundle: Bundle, utterance: Waveform) -> tuple[Token, ...]:
    """What the graph gives for an utterance that ends with the last feature frame it has heard."""
    stream = FeatureExtractor(bundle.info.features).stream()
    state = model.start()
    log_probs = np.concatenate([model.push(state, stream.push(utterance)), model.flush(state)])
    runs = greedy_decode(log_probs, bundle.vocabulary.blank_id)
    return tokens_from_runs(
        runs, bundle.vocabulary, model.geometry.frame_ms / 1e3, end_s=len(utterance) / RATE
    )


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 80_000), max_size=8).map(sorted), start=st.integers(0, 30_000))
def test_however_the_sound_came_the_hypothesis_is_that_of_the_utterance_at_once(
    model: StreamingModel,
    bundle: Bundle,
    speech: Waveform,
    cuts: list[int],
    start: int,
) -> None:
    decoder = StreamingDecoder(model, bundle.info.features, bundle.vocabulary)
    speech = speech[:80_000]
    for hypothesis in follow(decoder, speech, start, cuts):
        expected = tokens_at_once(model, bundle, speech[start : hypothesis.end])
        assert [(t.id, t.confidence) for t in hypothesis.tokens] == [(t.id, t.confidence) for t in expected]
        for token, twin in zip(hypothesis.tokens, expected, strict=True):
            assert token.start_s == pytest.approx(twin.start_s + start / RATE, abs=2e-6)
            assert token.end_s == pytest.approx(twin.end_s + start / RATE, abs=2e-6)


def test_a_model_of_8_khz_hears_the_stream_resampled(
    model: StreamingModel, bundle: Bundle, speech: Waveform
) -> None:
    features = dataclasses.replace(bundle.info.features, sample_rate=8_000, f_max=4_000.0)
    (hypothesis,) = follow(StreamingDecoder(model, features, bundle.vocabulary), speech, 0, [])
    slow = soxr.ResampleStream(RATE, 8_000, 1, dtype="float32", quality="HQ").resample_chunk(speech)
    state = model.start()
    log_probs = model.push(state, FeatureExtractor(features).stream().push(slow))
    runs = greedy_decode(np.concatenate([log_probs, model.flush(state)]), bundle.vocabulary.blank_id)
    assert [token.id for token in hypothesis.tokens] == runs.ids.tolist()
    assert len(runs) > 3


def test_a_second_utterance_knows_nothing_of_the_first(decoder: StreamingDecoder, speech: Waveform) -> None:
    (fresh,) = follow(decoder, speech[20_000:60_000], 0, [])
    follow(decoder, speech, 0, [30_000])
    (again,) = follow(decoder, speech[20_000:60_000], 0, [])
    assert again == fresh
    assert fresh.tokens


def test_an_utterance_costs_its_steps_once_and_the_tail_each_time(
    decoder: StreamingDecoder, model: StreamingModel, speech: Waveform
) -> None:
    runs: list[int] = []
    model.observe_steps(lambda seconds, n_rows: runs.append(n_rows))
    cuts = list(range(4_800, len(speech), 4_800))
    hypotheses = follow(decoder, speech, 0, cuts)
    n_chunks = len(speech) / RATE * 1e3 / (model.geometry.chunk_frames * model.geometry.frame_ms)
    assert n_chunks - 1 <= len(runs) <= n_chunks + len(hypotheses)


@pytest.mark.parametrize(("interval_s", "most_tails"), [(0.3, 0), (0.1, 99)])
def test_a_chunk_is_decoded_when_it_is_complete_and_the_tail_only_far_from_that(
    decoder: StreamingDecoder,
    model: StreamingModel,
    speech: Waveform,
    interval_s: float,
    most_tails: int,
) -> None:
    """Chunks of 320 ms: 0.3 s after one the next is near, 0.1 s after it is not."""
    runs: list[int] = []
    model.observe_steps(lambda seconds, n_rows: runs.append(n_rows))
    chunk_s = model.geometry.chunk_frames * model.geometry.frame_ms / 1e3
    assert chunk_s == pytest.approx(0.32)
    history = AudioHistory()
    decoder.begin(0)
    found: list[PartialHypothesis] = []
    for begin in range(0, len(speech), 320):
        history.append(speech[begin : begin + 320])
        n_before = len(runs)
        hypothesis = decoder.follow(history, round(interval_s * RATE))
        assert (hypothesis is None) == (len(runs) == n_before)
        found += [] if hypothesis is None else [hypothesis]
    n_chunks = int((len(speech) / RATE - 0.1) / chunk_s)
    n_tails = len(runs) - n_chunks
    assert min(n_tails, 1) == min(most_tails, 1)
    assert n_tails <= most_tails
    for before, after in itertools.pairwise(found):
        fixed = [token.id for token in before.tokens[: before.n_fixed]]
        assert [token.id for token in after.tokens[: before.n_fixed]] == fixed
    assert found[-1].n_fixed > 3


def test_finals_of_the_stream_are_what_it_gives_for_the_segment_at_once(
    streaming_bundle: Path, bundle: Bundle, model: StreamingModel, speech: Waveform
) -> None:
    config = LiveConfig(final="stream", partial_load=1.0)
    with Recognizer.load(streaming_bundle, num_threads=1) as recognizer:
        source = FileSource(speech, sample_rate=RATE, pace=0)
        with LiveRecognizer(recognizer, source, config=config, partials="streaming") as live:
            finals = [event for event in live if isinstance(event, Final)]
    assert finals
    for final in finals:
        # The stream has heard beyond the segment, so its last frames are cut off, not padded.
        start, end = final.segment_start_samples, final.segment_end_samples
        state, stream = model.start(), FeatureExtractor(bundle.info.features).stream()
        log_probs = np.concatenate([model.push(state, stream.push(speech[start:])), model.flush(state)])
        n_frames = math.ceil((end - start) / RATE * 1e3 / model.geometry.frame_ms)
        runs = greedy_decode(log_probs[:n_frames], bundle.vocabulary.blank_id)
        expected = tokens_from_runs(runs, bundle.vocabulary, model.geometry.frame_ms / 1e3)
        assert [token.id for token in final.tokens] == [token.id for token in expected]
        assert final.text


def test_live_recognition_with_it(streaming_bundle: Path, speech: Waveform) -> None:
    with Recognizer.load(streaming_bundle, num_threads=1) as recognizer:
        make_decoder = streaming_decoders(recognizer)
        assert make_decoder is not None
        source = FileSource(speech, sample_rate=RATE, pace=0)
        config = LiveConfig(partial_load=1.0)  # an update each 0.3 s of sound, however long one takes
        with LiveRecognizer(recognizer, source, config=config, partial_decoder=make_decoder()) as live:
            events = list(live)
        finals = [event for event in events if isinstance(event, Final)]
        partials = [event for event in events if isinstance(event, Partial)]
        assert finals
        assert len(partials) > len(finals)
        for final in finals:
            segment = speech[final.segment_start_samples : final.segment_end_samples]
            assert recognizer.transcribe(segment, RATE).text == final.text
        for partial in partials:
            begin, end = round(partial.start_s * RATE), round(partial.end_s * RATE)
            (hypothesis,) = follow(make_decoder(), speech[begin:end], 0, [])
            assert partial.text == hypothesis.settled_text


def test_windows_are_taken_where_nothing_streams_or_it_would_cost_more(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recognizer.load("tiny-en", num_threads=1) as offline, monkeypatch.context() as changed:
        assert offline.bundle is not None
        info = dataclasses.replace(offline.bundle.info, streaming=None)
        changed.setattr(offline, "bundle", dataclasses.replace(offline.bundle, info=info))
        assert streaming_decoders(offline) is None
        with pytest.raises(BundleError, match="no streaming model; export the checkpoint again"):
            streaming_decoders(offline, "streaming")
    with Recognizer.load(bundle.path, num_threads=1) as recognizer:
        assert streaming_decoders(recognizer) is not None
        assert streaming_decoders(recognizer, "windowed") is None
        with pytest.raises(ConfigError, match="partials is 'off'"):
            streaming_decoders(recognizer, "off")  # type: ignore[arg-type]
        engine = SimpleNamespace(name="tensorrt", num_threads=None, close=lambda: None)
        with monkeypatch.context() as changed:
            changed.setattr(recognizer, "backend", engine)
            assert streaming_decoders(recognizer) is None
            assert streaming_decoders(recognizer, "streaming") is not None
        geometry = dataclasses.replace(bundle.streaming.geometry, chunk_frames=1, ahead_frames=3)
        ahead = dataclasses.replace(bundle.streaming, geometry=geometry)
        with monkeypatch.context() as changed:
            changed.setattr(recognizer, "bundle", SimpleNamespace(info=SimpleNamespace(streaming=ahead)))
            assert streaming_decoders(recognizer) is None
            changed.setattr(recognizer, "bundle", None)
            assert streaming_decoders(recognizer) is None
            with pytest.raises(BundleError, match="a recognizer without a bundle has no streaming model"):
                streaming_decoders(recognizer, "streaming")


def test_the_graph_is_loaded_once_and_closed_with_the_recognizer(streaming_bundle: Path) -> None:
    with Recognizer.load(streaming_bundle, num_threads=1) as recognizer:
        model = recognizer.streaming_model()
        assert streaming_decoders(recognizer) is not None
        assert recognizer.streaming_model() is model
        state = model.start()
    with pytest.raises(BackendError, match="was closed"):
        model.push(state, np.zeros((200, model.n_mels), np.float32))


@pytest.mark.parametrize(
    ("partials", "streams", "shows"),
    [
        ("auto", True, True),
        ("streaming", True, True),
        ("windowed", False, True),
        ("off", False, False),
    ],
)
def test_a_live_recognizer_decides_as_listen_does(
    streaming_bundle: Path,
    speech: Waveform,
    monkeypatch: pytest.MonkeyPatch,
    partials: Any,
    streams: bool,
    shows: bool,
) -> None:
    pushes: list[int] = []
    push = StreamingModel.push_features
    monkeypatch.setattr(StreamingModel, "push_features", lambda *inputs: (pushes.append(1), push(*inputs))[1])
    with Recognizer.load(streaming_bundle, num_threads=1) as recognizer:
        source = FileSource(speech, sample_rate=RATE, pace=0)
        with LiveRecognizer(recognizer, source, partials=partials) as live:
            events = list(live)
    assert bool(pushes) == streams
    assert any(isinstance(event, Partial) for event in events) == shows
    assert any(isinstance(event, Final) for event in events)


def test_the_embedded_bundle_streams_as_soon_as_it_can(
    sample_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`listen` without -m uses the stream of the bundle if it has one, and shows about what is said."""
    steps: list[int] = []
    run = HostSteps.run
    monkeypatch.setattr(HostSteps, "run", lambda *inputs: (steps.append(1), run(*inputs))[1])
    result = CliRunner().invoke(cli, ["listen", "--simulate", str(sample_path), "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert bool(steps) == (Bundle.load("tiny-en").info.streaming is not None)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    said = sample_path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    finals = [event for event in events if event["type"] == "final"]
    last = {event["id"]: event["text"] for event in events if event["type"] == "partial"}
    for texts in ([final["text"] for final in finals], list(last.values())):
        # The last partial of an utterance lacks words of its end, and a stream hears less than the whole.
        assert compute_error_rates([said], [" ".join(texts)]).cer <= 0.3, texts


def test_a_way_to_follow_that_does_not_exist_is_refused() -> None:
    source = FileSource(np.zeros(RATE, np.float32), sample_rate=RATE)
    with pytest.raises(ConfigError, match="partials is 'fast'; it must be auto, streaming, windowed or off"):
        LiveRecognizer(ToneRecognizer(), source, partials="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="which needs a Recognizer with its bundle, not a ToneRecognizer"):
        LiveRecognizer(ToneRecognizer(), source, partials="streaming")


class FirstTokenOnly:
    """A `Decoder` for tests: greedy, but every token is called token 0."""

    def __init__(self, vocabulary: Vocabulary, inner: Decoder | None = None) -> None:
        self.vocabulary = vocabulary
        self.inner = inner or GreedyDecoder.for_vocabulary(vocabulary)

    def push(self, log_probs: Waveform) -> None:
        self.inner.push(log_probs)

    def peek(self) -> HypothesisOfDecoder:
        tokens = self.inner.peek().tokens
        return HypothesisOfDecoder(tokens=dataclasses.replace(tokens, ids=np.zeros_like(tokens.ids)))

    def flush(self) -> HypothesisOfDecoder:
        tokens = self.inner.flush().tokens
        return HypothesisOfDecoder(tokens=dataclasses.replace(tokens, ids=np.zeros_like(tokens.ids)))

    def fork(self) -> FirstTokenOnly:
        return FirstTokenOnly(self.vocabulary, self.inner.fork())


def test_the_decoder_that_was_chosen_decodes_everything(
    streaming_bundle: Path, speech: Waveform, tmp_path: Path
) -> None:
    """One pass, windows, batches, many files, live finals, and partials of either kind."""
    path = tmp_path / "a.wav"
    soundfile.write(path, speech, RATE)
    with Recognizer.load(streaming_bundle, num_threads=1, decoder=FirstTokenOnly) as recognizer:
        heard = [
            recognizer.transcribe(speech, RATE),
            recognizer.transcribe(np.tile(speech, 5), RATE),
            recognizer.transcribe_file(path),
            *recognizer.transcribe_batch([(speech, RATE), (speech[:20_000], RATE)]),
            *[result.transcript for result in transcribe_files(recognizer, [path, path])],
        ]
        for transcript in heard:
            assert transcript is not None
            assert {token.id for token in transcript.tokens} == {0}
        letter = recognizer.vocabulary.token_text(0)
        for partials in ("streaming", "windowed"):
            source = FileSource(speech, sample_rate=RATE, pace=0)
            with LiveRecognizer(recognizer, source, partials=partials) as live:
                events = [event for event in live if isinstance(event, Partial | Final)]
            assert {type(event) for event in events} == {Partial, Final}
            assert {c for event in events for c in event.text} == {letter}


@pytest.mark.mic
@pytest.mark.slow
def test_listen_streams_from_the_microphone(
    virtual_microphone: VirtualMicrophone, streaming_bundle: Path, speech: Waveform
) -> None:
    """Each partial is what the streaming graph gives at once for the recorded samples that it covers."""
    with tempfile.TemporaryDirectory(prefix="edge-asr-mic-") as name:
        folder = Path(name)
        soundfile.write(folder / "played.wav", soxr.resample(speech, RATE, 48_000), 48_000, subtype="PCM_16")
        arguments = ["--json", "--threads", "1", "--rate", "48000", "--record", str(folder / "heard.wav")]
        program = Program(virtual_microphone, *arguments, model=str(streaming_bundle))
        program.wait_for("listening to")
        virtual_microphone.play(folder / "played.wav")
        code, lines, messages = program.interrupt()
        heard, _ = soundfile.read(folder / "heard.wav", dtype="float32")
    assert code == 130, messages
    events = [json.loads(line) for line in lines]
    starts = {e["id"]: round(e["segment_start_s"] * RATE) for e in events if e["type"] == "final"}
    partials = [e for e in events if e["type"] == "partial" and e["text"] and e["id"] in starts]
    assert len(partials) >= 3
    with Recognizer.load(streaming_bundle, num_threads=1) as recognizer:
        make_decoder = streaming_decoders(recognizer)
        assert make_decoder is not None
        for partial in partials:
            # Its end is rounded to a millisecond, and a feature frame may have been complete just there.
            texts = set()
            for end in (round(partial["end_s"] * RATE) + off for off in (-9, 9)):
                (hypothesis,) = follow(make_decoder(), heard[starts[partial["id"]] : end], 0, [])
                texts.add(hypothesis.settled_text)
            assert partial["text"] in texts
