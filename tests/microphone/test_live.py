"""Live recognition over files and arrays, with the fake recognizer of tones.py: what is said when."""

from __future__ import annotations

import itertools
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace, TracebackType

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import RATE, WORDS, ToneRecognizer, silence, speak

from edge_asr.errors import AudioError, ConfigError, DeviceError
from edge_asr.runtime.live import recognizer as live_module
from edge_asr.runtime.live import stream
from edge_asr.runtime.live.endpointing import EndpointConfig
from edge_asr.runtime.live.events import Error, Event, Final, Gap, Partial, Unmatched
from edge_asr.runtime.live.queue_source import QueueSource
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import AudioBlock, FileSource, Loss, Recorder
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.transcript import GrammarResult, PhraseSlot, Transcript

SHORT = EndpointConfig(max_utterance_s=5.0, cut_search_s=2.0)


class ScriptedSource:
    """A fake source: gives the blocks it was given, then ends or fails."""

    def __init__(self, blocks: list[AudioBlock], failure: Exception | None = None) -> None:
        self.blocks = list(blocks)
        self.failure = failure
        self.closed = False

    def __enter__(self) -> ScriptedSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    def read(self) -> AudioBlock | None:
        if self.blocks:
            return self.blocks.pop(0)
        if self.failure is not None:
            raise self.failure
        return None

    def stop(self) -> None:
        self.blocks.clear()


def listen(audio: np.ndarray, *, config: LiveConfig | None = None, **source: float) -> list[Event]:
    """All events of a waveform at 16 kHz, as fast as it is read."""
    live = LiveRecognizer(
        ToneRecognizer(), FileSource(audio, sample_rate=RATE, pace=0, **source), config=config
    )
    with live:
        return list(live)


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def words_of(events: list[Event]) -> list[str]:
    return " ".join(final.text for final in finals(events)).split()


def test_silence_gives_nothing_and_costs_nothing() -> None:
    recognizer = ToneRecognizer()
    with LiveRecognizer(recognizer, FileSource(silence(30), sample_rate=RATE, pace=0)) as live:
        assert list(live) == []
    assert recognizer.lens_s == []
    assert live.stats.audio_s == 30.0


@pytest.mark.parametrize("level", [0.0005, 0.01, 0.1])
def test_noise_without_words_gives_nothing(level: float) -> None:
    noise = (level * np.random.default_rng(0).standard_normal(20 * RATE)).astype(np.float32)
    assert listen(noise) == []


@pytest.mark.parametrize("level", [0.0, 0.003, 0.03])
def test_sentences_come_with_partials_first_and_a_final_at_each_pause(level: float) -> None:
    first, second = ["alpha", "echo", "golf", "golf"], ["hotel", "bravo"]
    # The noise floor takes 3 s to rise to a noise that was there from the first sample.
    audio = np.concatenate([silence(3.5), speak(first), silence(1), speak(second), silence(1)])
    audio = audio + (level * np.random.default_rng(0).standard_normal(len(audio))).astype(np.float32)
    events = listen(audio)
    assert [final.text.split() for final in finals(events)] == [first, second]
    assert [final.id for final in finals(events)] == [0, 1]
    assert {final.reason for final in finals(events)} == {"pause"}
    partials = [event for event in events if isinstance(event, Partial)]
    assert {partial.id for partial in partials} == {0, 1}
    assert all(" ".join(first).startswith(p.text) for p in partials if p.id == 0)
    order = [(event.id, isinstance(event, Final)) for event in events if isinstance(event, Partial | Final)]
    assert order == sorted(order)
    assert finals(events)[0].start_s == pytest.approx(3.5, abs=0.05)
    assert finals(events)[0].words[-1].end_s == pytest.approx(3.5 + 4 * 0.37 - 0.12, abs=0.05)
    assert 0.6 <= finals(events)[0].endpoint_wait_s <= 0.7


@settings(deadline=None, max_examples=25)
@given(
    sentence=st.lists(st.sampled_from(WORDS), min_size=1, max_size=45),
    gap_s=st.floats(0.06, 0.45),
    lead_s=st.floats(0, 2),
)
def test_no_word_is_lost_or_doubled_however_long_the_speech(
    sentence: list[str], gap_s: float, lead_s: float
) -> None:
    """Up to 30 s without a pause that ends an utterance, cut every 5 s at most; a fake recognizer."""
    audio = np.concatenate([silence(lead_s), speak(sentence, gap_s=gap_s)])
    events = listen(audio, config=LiveConfig(endpoint=SHORT))
    assert words_of(events) == sentence
    for final in finals(events):
        assert final.segment_end_s - final.segment_start_s <= 5.0
    segments = [(f.segment_start_samples, f.segment_end_samples) for f in finals(events)]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(segments))
    assert segments[-1][1] == len(audio)


@pytest.mark.parametrize("partials", [True, False])
def test_a_final_is_made_while_its_pause_goes_on(partials: bool) -> None:
    """The sound of the pause comes at once, so what took no time had been made before."""
    recognizer = ToneRecognizer(slowness=0.02)  # a final takes 20 ms or more
    audio = np.concatenate([silence(1), speak(["alpha", "echo"]), silence(1), speak(["golf"]), silence(1)])
    live = LiveRecognizer(
        recognizer, FileSource(audio, sample_rate=RATE, pace=0), config=LiveConfig(partials=partials)
    )
    with live:
        made = finals(list(live))
    assert words_of(made) == ["alpha", "echo", "golf"]
    assert [final.compute_s for final in made] == [0.0, 0.0]


def test_finals_that_the_speaker_overtakes_cost_a_tenth_of_the_speech_and_one_more() -> None:
    """Pauses of 0.4 s, which is longer than the tail of an utterance and ends none."""
    slowness = 0.05
    recognizer = ToneRecognizer(slowness=slowness)
    audio = np.concatenate([silence(1), *(speak([word], gap_s=0.4) for word in WORDS * 3), silence(1)])
    config = LiveConfig(partials=False, endpoint=EndpointConfig(max_utterance_s=30))
    live = LiveRecognizer(recognizer, FileSource(audio, sample_rate=RATE, pace=0), config=config)
    with live:
        (final,) = finals(list(live))
    assert final.text.split() == [*WORDS] * 3
    length_s = (final.segment_end_samples - final.segment_start_samples) / RATE
    # Finals begin with the utterance; what only looks for words covers the last 8 s.
    tries = [run_s for run_s in recognizer.lens_s if run_s > 8.01]
    assert slowness * sum(tries) <= 0.1 * length_s + slowness * 2 * length_s
    assert len(tries) < 2 * len(WORDS)


def test_a_speech_that_goes_on_after_a_final_was_made_is_transcribed_again() -> None:
    recognizer = ToneRecognizer()
    audio = np.concatenate([silence(1), speak(["alpha"], gap_s=0.45), speak(["echo"]), silence(1)])
    with LiveRecognizer(recognizer, FileSource(audio, sample_rate=RATE, pace=0)) as live:
        (final,) = finals(list(live))
    assert final.text == "alpha echo"


def test_finals_of_a_stream_need_one() -> None:
    source = FileSource(silence(1), sample_rate=RATE)
    with pytest.raises(ConfigError, match="final is 'fast'; it must be offline or stream"):
        LiveConfig(final="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="final is 'stream', and partials are windowed or off here; use"):
        LiveRecognizer(ToneRecognizer(), source, config=LiveConfig(final="stream"))


def test_finals_are_transcribe_of_their_segments_of_the_recording(tmp_path: Path) -> None:
    audio = np.concatenate(
        [speak(["delta", "echo"]), silence(0.9), speak(WORDS, gap_s=0.3), silence(1), speak(["golf"])]
    )
    noise = 0.002 * np.random.default_rng(0).standard_normal(len(audio))
    audio = (audio + noise).astype(np.float32)
    recording = tmp_path / "heard.wav"
    live = LiveRecognizer(
        ToneRecognizer(), FileSource(audio, sample_rate=RATE, pace=0), recorder=Recorder(recording)
    )
    with live:
        events = list(live)
    heard, rate = soundfile.read(recording, dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(heard, audio)
    previous_end = 0
    for final in finals(events):
        start, end = round(final.segment_start_s * RATE), round(final.segment_end_s * RATE)
        assert (start, end) == (final.segment_start_samples, final.segment_end_samples)
        assert previous_end <= start < end <= len(heard)
        assert ToneRecognizer().transcribe(heard[start:end], RATE).text == final.text
        previous_end = end
    assert len(finals(events)) == 3


@pytest.mark.parametrize("block_s", [0.001, 0.013, 0.02, 0.5, 30.0])
def test_the_size_of_blocks_does_not_matter(block_s: float) -> None:
    audio = np.concatenate([silence(0.5), speak(WORDS), silence(1), speak(WORDS[:3]), silence(1)])
    # Partials follow the wall clock; without them everything follows the audio alone.
    config = LiveConfig(partials=False)
    reference = listen(audio, config=config)
    other = listen(audio, config=config, block_s=block_s)
    assert [(f.text, f.words, f.reason) for f in finals(other)] == [
        (f.text, f.words, f.reason) for f in finals(reference)
    ]
    assert len(other) == 2


def test_a_file_at_another_rate_and_in_stereo(tmp_path: Path) -> None:
    audio = np.concatenate([silence(0.5), speak(["alpha", "delta"], rate=44_100)])
    soundfile.write(tmp_path / "stereo.wav", np.stack([audio, audio], axis=1), 44_100)
    with LiveRecognizer(ToneRecognizer(), FileSource(tmp_path / "stereo.wav", pace=0)) as live:
        assert words_of(list(live)) == ["alpha", "delta"]
    assert live.stats.audio_s == pytest.approx(len(audio) / 44_100, abs=0.001)


def test_real_time_pace() -> None:
    began = time.monotonic()
    with LiveRecognizer(ToneRecognizer(), FileSource(speak(WORDS[:4]), sample_rate=RATE, pace=2.0)) as live:
        list(live)
    assert 0.70 <= time.monotonic() - began < 3.0


def test_stop_flushes_the_last_words() -> None:
    audio = np.concatenate([speak(["alpha", "bravo", "charlie"]), silence(60)])
    with LiveRecognizer(ToneRecognizer(), FileSource(audio, sample_rate=RATE)) as live:
        time.sleep(1.25)
        live.stop()
        events = list(live)
    assert words_of(events) == ["alpha", "bravo", "charlie"]
    assert events[-1].to_dict()["reason"] == "end"
    assert 1.0 < live.stats.audio_s < 10


def test_leaving_the_block_stops_and_flushes() -> None:
    heard: list[Event] = []
    source = FileSource(np.concatenate([speak(["alpha"]), silence(60)]), sample_rate=RATE)
    with LiveRecognizer(ToneRecognizer(), source, on_event=heard.append) as live:
        time.sleep(0.6)
    assert words_of(heard) == ["alpha"]
    assert live.join(0)
    with pytest.raises(ConfigError, match="on_event"):
        next(iter(live))


def test_max_audio_is_exact_to_the_sample(tmp_path: Path) -> None:
    live = LiveRecognizer(
        ToneRecognizer(),
        FileSource(speak(WORDS), sample_rate=RATE, pace=0),
        config=LiveConfig(max_audio_s=1.2345),
        recorder=Recorder(tmp_path / "heard.wav"),
    )
    with live:
        events = list(live)
    assert soundfile.info(tmp_path / "heard.wav").frames == 19_752
    assert words_of(events) == list(WORDS[:4])
    assert finals(events)[0].segment_end_samples == 19_752


def test_a_loss_ends_the_utterance_and_is_told_with_how_much_and_why() -> None:
    first, second = speak(["alpha", "bravo"]), speak(["charlie"])
    loss = Loss(lost_s=1.5, reason="queue_overflow", estimated=False)
    source = ScriptedSource([AudioBlock(first), AudioBlock(second, (loss,))])
    with LiveRecognizer(ToneRecognizer(), source) as live:
        events = [event for event in live if not isinstance(event, Partial)]
    before, gap, after = events
    assert isinstance(before, Final)
    assert isinstance(after, Final)
    assert (before.text, before.reason, before.segment_end_samples) == ("alpha bravo", "gap", len(first))
    assert gap == Gap(at_s=len(first) / RATE, lost_s=1.5, reason="queue_overflow", estimated=False)
    assert (after.text, after.segment_start_samples) == ("charlie", len(first))
    assert (live.stats.n_gaps, live.stats.n_overflows, live.stats.lost_s) == (1, 1, 1.5)


def test_a_dying_device_gives_the_last_words_then_an_error() -> None:
    source = ScriptedSource([AudioBlock(speak(["alpha"]))], DeviceError("the microphone is gone"))
    with LiveRecognizer(ToneRecognizer(), source) as live:
        events = [event for event in live if not isinstance(event, Partial)]
    assert [event.to_dict()["type"] for event in events] == ["final", "error"]
    assert events[1] == Error(message="the microphone is gone", kind="DeviceError", at_s=0.37)
    assert isinstance(live.error, DeviceError)
    assert source.closed


def test_a_failing_backend_is_an_error_event() -> None:
    source = FileSource(np.concatenate([speak(WORDS), silence(1)]), sample_rate=RATE, pace=0)
    with LiveRecognizer(ToneRecognizer(fail_after=1), source) as live:
        events = list(live)
    assert isinstance(events[-1], Error)
    assert events[-1].kind == "BackendError"
    assert "as it was told to" in events[-1].message


def test_a_bug_is_raised_where_the_events_are_read() -> None:
    source = ScriptedSource([], ZeroDivisionError("a bug"))
    live = LiveRecognizer(ToneRecognizer(), source)
    live.start()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(live)
    assert source.closed


def test_a_bug_in_the_callback_is_raised_on_leaving() -> None:
    def buggy(event: Event) -> None:
        raise ZeroDivisionError("a bug")

    source = FileSource(np.concatenate([speak(WORDS), silence(1)]), sample_rate=RATE, pace=0)
    live = LiveRecognizer(ToneRecognizer(), source, on_event=buggy)
    live.start()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        live.join()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        live.__exit__(None, None, None)


def test_a_second_iteration_ends_at_once() -> None:
    with LiveRecognizer(ToneRecognizer(), FileSource(silence(1), sample_rate=RATE, pace=0)) as live:
        assert [list(live), list(live)] == [[], []]


def test_a_slow_recognizer_gives_fewer_partials_and_the_same_finals() -> None:
    audio = np.concatenate([speak(WORDS), silence(1)])
    fast = LiveRecognizer(ToneRecognizer(), FileSource(audio, sample_rate=RATE))
    slow = LiveRecognizer(ToneRecognizer(slowness=0.5), FileSource(audio, sample_rate=RATE))
    results: dict[str, list[Event]] = {}
    threads = [
        threading.Thread(target=lambda name=name, live=live: results.update({name: list(live)}))
        for name, live in (("fast", fast), ("slow", slow))
    ]
    with fast, slow:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert words_of(results["fast"]) == words_of(results["slow"]) == list(WORDS)
    assert slow.stats.n_partials < fast.stats.n_partials


class OneCore(ToneRecognizer):
    """A fake: one call at a time, each 0.15 s for a second of sound."""

    def __init__(self) -> None:
        super().__init__(slowness=0.15)
        self.lock = threading.Lock()

    def transcribe(self, waveform: np.ndarray, sample_rate: int) -> Transcript:
        with self.lock:
            return super().transcribe(waveform, sample_rate)


def test_too_many_streams_have_fewer_partials_each_and_all_their_finals() -> None:
    """At full rate the partials of one stream take two thirds of the core, and there are four."""
    audio = np.concatenate([silence(0.5), speak(list(WORDS)), silence(1.5)])
    recognizer = OneCore()
    sources = [QueueSource(queue_s=30) for _ in range(4)]
    lives = [LiveRecognizer(recognizer, source) for source in sources]
    for live in lives:
        live.start()
    for begin in range(0, len(audio), 1600):
        for source in sources:
            source.push(audio[begin : begin + 1600])
        time.sleep(0.1)
    for source in sources:
        source.end()
    heard = [list(live) for live in lives]
    assert [words_of(events) for events in heard] == [list(WORDS)] * 4
    assert not any(isinstance(event, Gap) for events in heard for event in events)
    n_partials = [live.stats.n_partials for live in lives]
    alone = LiveRecognizer(ToneRecognizer(), FileSource(audio, sample_rate=RATE))
    with alone:
        list(alone)
    assert min(n_partials) >= 1
    assert max(n_partials) < alone.stats.n_partials
    assert max(n_partials) <= 3 * min(n_partials)  # nobody is served at the cost of the others


def test_a_recording_is_never_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "heard.wav").write_bytes(b"precious")
    with pytest.raises(AudioError, match=r"heard\.wav exists already"):
        Recorder(tmp_path / "heard.wav")
    assert (tmp_path / "heard.wav").read_bytes() == b"precious"
    Recorder(tmp_path / "heard.wav", overwrite=True).close()


@pytest.mark.parametrize("name", ["heard.mp3", "nowhere/heard.wav"])
def test_a_recording_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AudioError, match=r"heard"):
        Recorder(tmp_path / name)


def test_a_missing_file_is_an_error_event() -> None:
    with LiveRecognizer(ToneRecognizer(), FileSource(Path("/nowhere/x.wav"))) as live:
        events = list(live)
    assert [event.to_dict()["kind"] for event in events] == ["AudioError"]
    assert "/nowhere/x.wav" in str(live.error)


@pytest.mark.parametrize("form", ["int16", "int32", "float64", "stereo"])
def test_a_source_of_another_dtype_is_heard_as_what_it_is(form: str) -> None:
    audio = speak(["alpha", "delta"])
    if form == "stereo":
        given_audio: np.ndarray = np.stack([audio, audio], axis=1)
    elif form.startswith("int"):
        given_audio = (audio * np.iinfo(form).max).astype(form)
    else:
        given_audio = audio.astype(form)
    blocks: list[AudioBlock] = [AudioBlock(piece) for piece in np.array_split(given_audio, 20)]
    with LiveRecognizer(ToneRecognizer(), ScriptedSource(blocks)) as live:
        assert words_of(list(live)) == ["alpha", "delta"]


def test_a_source_of_what_is_no_sound_is_an_error_event() -> None:
    blocks = [AudioBlock(speak(["alpha"])), AudioBlock(np.zeros(10, np.uint8))]  # type: ignore[arg-type]
    with LiveRecognizer(ToneRecognizer(), ScriptedSource(blocks)) as live:
        events = list(live)
    assert words_of(events) == ["alpha"]
    assert isinstance(events[-1], Error)
    assert (events[-1].kind, "dtype uint8" in events[-1].message) == ("AudioError", True)


@pytest.mark.parametrize("max_audio_s", [float("inf"), float("nan"), 0.0, -1.0])
def test_an_impossible_end_is_refused(max_audio_s: float) -> None:
    with pytest.raises(ConfigError, match=f"max_audio_s is {max_audio_s}; give a positive number"):
        LiveConfig(max_audio_s=max_audio_s)


def test_what_was_not_started_says_so() -> None:
    live = LiveRecognizer(ToneRecognizer(), FileSource(silence(1), sample_rate=RATE))
    with pytest.raises(ConfigError, match=r"listening has not begun; write `with LiveRecognizer"):
        next(iter(live))
    with pytest.raises(ConfigError, match="listening has not begun"):
        live.join(0.1)
    live.stop()


def test_an_os_error_of_a_source_loses_no_words_either() -> None:
    source = ScriptedSource([AudioBlock(speak(["alpha"]))], ConnectionResetError(104, "reset by peer"))
    with LiveRecognizer(ToneRecognizer(), source) as live:
        events = list(live)
    assert words_of(events) == ["alpha"]
    assert isinstance(live.error, DeviceError)
    assert "the source failed with ConnectionResetError: [Errno 104] reset by peer" in str(live.error)
    assert source.closed


def test_a_bug_of_a_source_is_raised_behind_the_last_words() -> None:
    heard: list[Event] = []
    source = ScriptedSource([AudioBlock(speak(["alpha"]))], ZeroDivisionError("a bug"))
    live = LiveRecognizer(ToneRecognizer(), source, on_event=heard.append)
    live.start()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        live.join()
    assert words_of(heard) == ["alpha"]


class DeafSource(ScriptedSource):
    """A fake source that does not care about `stop`: it waits for ever, or goes on for ever."""

    def __init__(self, blocks: list[AudioBlock], *, waits_in: str) -> None:
        super().__init__(blocks)
        self.waits_in = waits_in
        self.let_go = threading.Event()

    def read(self) -> AudioBlock | None:
        if self.blocks:
            return self.blocks.pop(0)
        if self.waits_in == "read":
            self.let_go.wait()
        if self.waits_in == "nothing":
            return AudioBlock(silence(10))
        if self.waits_in == "little":
            time.sleep(0.02)
            return AudioBlock(silence(0.02))
        return None

    def __exit__(self, *exception: object) -> None:
        super().__exit__(None, None, None)
        if self.waits_in == "exit":
            self.let_go.wait()

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("waits_in", ["read", "exit", "nothing", "little"])
def test_a_source_that_does_not_stop_is_left_behind_with_its_last_words(
    waits_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "_STOP_ANSWERS_S", 0.3)
    heard: list[Event] = []
    source = DeafSource([AudioBlock(speak(["alpha", "bravo"]))], waits_in=waits_in)
    began = time.monotonic()
    with LiveRecognizer(ToneRecognizer(), source, on_event=heard.append) as live:
        live.hearing.wait()
    assert time.monotonic() - began < 20
    assert words_of(heard) == ["alpha", "bravo"]
    assert isinstance(live.error, DeviceError)
    assert re.search(
        r"the source still (keeps its reader waiting|gives sound) 0\.3 s after stop", str(live.error)
    )
    assert isinstance(heard[-1], Error)
    source.let_go.set()
    live._thread.join(5)
    assert not live._thread.is_alive()
    assert len(finals(heard)) == 1  # what the source does later is nobody's business


def test_a_source_that_does_not_stop_ends_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_STOP_ANSWERS_S", 0.3)
    source = DeafSource([AudioBlock(speak(["alpha"]))], waits_in="read")
    with LiveRecognizer(ToneRecognizer(), source) as live:
        live.hearing.wait()
        live.stop()
        events = list(live)
    assert words_of(events) == ["alpha"]
    assert isinstance(events[-1], Error)
    source.let_go.set()


def test_a_slow_recognizer_is_waited_for_after_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a source is left behind: words that wait in its queue are recognized, however long it takes."""
    monkeypatch.setattr(live_module, "_STOP_ANSWERS_S", 0.3)
    source = QueueSource()
    with LiveRecognizer(ToneRecognizer(slowness=0.5), source) as live:
        source.push(np.concatenate([speak(WORDS[:4]), silence(1), speak(WORDS[4:])]))
        live.hearing.wait()
        live.stop()
        events = list(live)
    assert words_of(events) == list(WORDS)
    assert live.error is None


class PhraseRecognizer(ToneRecognizer):
    """A fake with a grammar of one phrase."""

    phrase = "alpha bravo"

    def transcribe(self, waveform: np.ndarray, sample_rate: int) -> Transcript:
        heard = super().transcribe(waveform, sample_rate)
        matched = heard.text == self.phrase
        result = GrammarResult(
            matched=matched,
            phrase=heard.text if matched else "",
            slots=(PhraseSlot(name="last", value="bravo", number=None, start_s=0.5, end_s=0.75),) * matched,
            tags=("A",) * matched,
            score=-0.1 if matched else None,
            confidence=0.9 if matched else 0.0,
            heard=heard.tokens,
            heard_text=heard.text,
        )
        if matched:
            return replace(heard, grammar=result)
        return replace(heard, text="", tokens=(), words=(), segments=(), grammar=result)


def test_what_is_no_phrase_of_the_grammar_is_said_to_be_unmatched(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine on which decoding stalls leaves partials out; on this clock nothing takes any time.
    monkeypatch.setattr(stream, "time", SimpleNamespace(monotonic=lambda: 0.0))
    pause = silence(1.5)
    said = [["alpha", "bravo"], ["charlie"], ["alpha", "bravo"], ["bravo"]]
    audio = np.concatenate([part for words in said for part in (pause, speak(words))] + [pause])
    live = LiveRecognizer(PhraseRecognizer(), FileSource(audio, sample_rate=RATE, pace=0))
    with live:
        events = list(live)
    ends = [event for event in events if isinstance(event, (Final, Unmatched))]
    assert [type(event) for event in ends] == [Final, Unmatched, Final, Unmatched]
    assert [event.id for event in ends] == [0, 1, 2, 3]
    assert [event.heard for event in ends if isinstance(event, Unmatched)] == ["charlie", "bravo"]
    first, second = ends[0].to_dict(), ends[1].to_dict()
    assert (first["text"], first["matched"], first["tags"]) == ("alpha bravo", True, ["A"])
    assert first["slots"][0]["start_s"] == ends[0].segment_start_samples / RATE + 0.5
    assert (second["type"], second["text"], second["matched"]) == ("unmatched", "", False)
    # The beginning of a phrase is shown while it is spoken, and ends with the event of its id.
    shown = [event.text for event in events if isinstance(event, Partial) and event.id == 1]
    assert shown[-1:] == ["charlie"]
    assert (live.stats.n_finals, live.stats.n_unmatched) == (2, 2)
    assert 1.5 < ends[1].start_s - ends[0].end_s < 1.8
