"""The microphone against a fake sounddevice: what real hardware does rarely, done on demand."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tones import WORDS, ToneRecognizer, speak

from edge_asr.errors import ConfigError, DeviceError
from edge_asr.runtime.live import microphone
from edge_asr.runtime.live.events import Gap
from edge_asr.runtime.live.microphone import MicrophoneConfig, MicrophoneSource, find_device, list_devices
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import AudioBlock, Loss

DEVICES = [
    {"name": "HDA: Speaker", "hostapi": 0, "max_input_channels": 0, "default_samplerate": 48000.0},
    {"name": "USB mic: Audio", "hostapi": 0, "max_input_channels": 1, "default_samplerate": 48000.0},
    {"name": "USB array: Audio", "hostapi": 0, "max_input_channels": 6, "default_samplerate": 16000.0},
    {"name": "default", "hostapi": 0, "max_input_channels": 32, "default_samplerate": 44100.0},
]


class FakePortAudioError(Exception):
    """Stands for sounddevice.PortAudioError."""


class FakeSoundDevice(ModuleType):
    """A fake of the sounddevice module; the test calls `hear` in the place of the driver's thread."""

    PortAudioError = FakePortAudioError

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.devices: list[dict[str, Any]] = DEVICES
        self.default = SimpleNamespace(device=[3, 0])
        self.stream: FakeStream | None = None
        self.refuses: Callable[[dict[str, Any]], bool] = lambda wanted: False
        self.breaks_on_start = False
        self.answers = Event()
        self.answers.set()

    def _exit_handler(self) -> None:
        pass

    def query_devices(self) -> list[dict[str, Any]]:
        return self.devices

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "ALSA"}]

    def InputStream(self, **wanted: Any) -> FakeStream:
        if self.refuses(wanted):
            raise FakePortAudioError("Invalid number of channels [PaErrorCode -9998]")
        self.stream = FakeStream(self, wanted)
        return self.stream

    def hear(self, samples: np.ndarray, *, overflow: bool = False) -> None:
        """The driver's callback with one block: f32 [n] is put on every channel, scaled by its number + 1."""
        assert self.stream is not None
        n_channels = self.stream.wanted["channels"]
        data = np.stack([samples * (c + 1) for c in range(n_channels)], axis=1).astype(np.float32)
        status = SimpleNamespace(input_overflow=overflow)
        self.stream.wanted["callback"](data, len(samples), None, status)
        data[:] = np.nan  # PortAudio's buffer is gone when the callback returns


class FakeStream:
    """A fake of sounddevice.InputStream."""

    def __init__(self, module: FakeSoundDevice, wanted: dict[str, Any]) -> None:
        self.module = module
        self.wanted = wanted
        self.active = False
        self.closed = False

    def start(self) -> None:
        if self.module.breaks_on_start:
            raise FakePortAudioError("Device unavailable [PaErrorCode -9985]")
        self.active = True

    def stop(self, ignore_errors: bool = True) -> None:
        self.active = False

    def close(self) -> None:
        self.module.answers.wait(timeout=30)
        self.active = False
        self.closed = True


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    fake = FakeSoundDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def read_all(source: MicrophoneSource) -> tuple[np.ndarray, list[Loss]]:
    """Everything until the end after `stop`."""
    source.stop()
    blocks: list[AudioBlock] = []
    while (block := source.read()) is not None:
        blocks.append(block)
    return np.concatenate([block.samples for block in blocks]), [loss for b in blocks for loss in b.losses]


def test_devices_are_those_that_record(portaudio: FakeSoundDevice) -> None:
    devices = list_devices()
    assert [device.index for device in devices] == [1, 2, 3]
    assert [device.index for device in devices if device.is_default] == [3]
    assert devices[0].to_dict() == {
        "index": 1,
        "name": "USB mic: Audio",
        "host_api": "ALSA",
        "max_channels": 1,
        "sample_rate": 48000,
        "is_default": False,
    }


@pytest.mark.parametrize(
    ("wanted", "index"), [(None, 3), (2, 2), ("array", 2), ("usb mic: audio", 1), ("DEFAULT", 3)]
)
def test_a_device_is_found(portaudio: FakeSoundDevice, wanted: int | str | None, index: int) -> None:
    assert find_device(wanted).index == index


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (0, "no input device fits 0; there are 1: USB mic"),
        ("webcam", "no input device fits 'webcam'; there are 1: USB mic: Audio; 2: USB array"),
        ("usb", "2 input devices fit 'usb'; give the index of one of 1: USB mic: Audio; 2: USB array: Audio"),
    ],
)
def test_a_device_that_is_not_there_or_not_alone(
    portaudio: FakeSoundDevice, wanted: int | str, words: str
) -> None:
    with pytest.raises(DeviceError, match=words):
        find_device(wanted)


def test_no_microphone_at_all(portaudio: FakeSoundDevice) -> None:
    portaudio.devices = DEVICES[:1]
    with pytest.raises(DeviceError, match="no microphone found; plug one in"):
        MicrophoneSource().__enter__()


def test_no_portaudio_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("edge_asr.runtime.live.microphone.importlib.import_module", refuse)
    with pytest.raises(DeviceError, match=r"PortAudio library not found.*apt install libportaudio2"):
        list_devices()


def test_no_sounddevice_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DeviceError, match="pip install sounddevice"):
        list_devices()


def test_a_busy_device_is_refused_with_its_name_and_rate(portaudio: FakeSoundDevice) -> None:
    portaudio.breaks_on_start = True
    with pytest.raises(
        DeviceError, match=r"device 1 \(USB mic: Audio\) cannot be opened at 48000 Hz: Device unavail"
    ):
        MicrophoneSource(MicrophoneConfig(device=1)).__enter__()
    assert portaudio.stream is not None
    assert portaudio.stream.closed


def test_a_device_opens_at_its_own_rate_and_the_stream_is_16_khz(portaudio: FakeSoundDevice) -> None:
    played = np.sin(np.arange(48_000) * 2 * np.pi * 440 / 48_000).astype(np.float32)
    with MicrophoneSource(MicrophoneConfig(device=1)) as source:
        assert portaudio.stream is not None
        assert portaudio.stream.wanted["samplerate"] == 48_000
        assert portaudio.stream.wanted["channels"] == 1
        for block in np.split(played, 50):
            portaudio.hear(block)
        heard, losses = read_all(source)
    assert losses == []
    assert len(heard) == 16_000
    expected = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000)
    np.testing.assert_allclose(heard[200:-200], expected[200:-200], atol=1e-3)
    assert portaudio.stream.closed


def test_16_khz_passes_untouched(portaudio: FakeSoundDevice) -> None:
    played = np.random.default_rng(0).uniform(-1, 1, 3200).astype(np.float32)
    with MicrophoneSource(MicrophoneConfig(device=2)) as source:
        for block in np.split(played, 10):
            portaudio.hear(block)
        heard, _ = read_all(source)
    np.testing.assert_array_equal(heard, played)


@pytest.mark.parametrize(("mix", "scale"), [("first", 1.0), ("mean", 3.5)])
def test_a_device_that_refuses_mono_is_opened_with_all_channels(
    portaudio: FakeSoundDevice, mix: Any, scale: float
) -> None:
    portaudio.refuses = lambda wanted: wanted["channels"] != 6
    with MicrophoneSource(MicrophoneConfig(device=2, mix=mix)) as source:
        portaudio.hear(np.full(320, 0.1, np.float32))
        heard, _ = read_all(source)
    np.testing.assert_allclose(heard, 0.1 * scale, rtol=1e-6)


def test_a_device_that_refuses_everything(portaudio: FakeSoundDevice) -> None:
    portaudio.refuses = lambda wanted: True
    with pytest.raises(DeviceError, match="Invalid number of channels"):
        MicrophoneSource(MicrophoneConfig(device=2)).__enter__()


def test_a_full_queue_drops_counts_and_tells(portaudio: FakeSoundDevice) -> None:
    block = np.full(320, 0.1, np.float32)
    with MicrophoneSource(MicrophoneConfig(device=2, queue_s=0.1)) as source:
        for _ in range(12):
            portaudio.hear(block)
        assert source.n_dropped_frames == 7 * 320
        assert source.queued_s == pytest.approx(0.1)
        for _ in range(5):
            block_read = source.read()
            assert block_read is not None
            assert block_read.losses == ()
        portaudio.hear(block)
        heard, losses = read_all(source)
    assert losses == [Loss(lost_s=0.14, reason="queue_overflow", estimated=False)]
    assert len(heard) == 320


def test_what_a_full_queue_dropped_last_is_told_at_the_end(portaudio: FakeSoundDevice) -> None:
    block = np.full(320, 0.1, np.float32)
    with MicrophoneSource(MicrophoneConfig(device=2, queue_s=0.1)) as source:
        for _ in range(7):
            portaudio.hear(block)
        heard, losses = read_all(source)
    assert len(heard) == 5 * 320
    assert losses == [Loss(lost_s=0.04, reason="queue_overflow", estimated=False)]


def test_an_overflow_of_the_driver_is_told_before_the_audio_after_it(portaudio: FakeSoundDevice) -> None:
    with MicrophoneSource(MicrophoneConfig(device=1)) as source:
        portaudio.hear(np.full(4800, 0.1, np.float32))
        portaudio.hear(np.full(4800, 0.9, np.float32), overflow=True)
        source.stop()
        before = 0
        while (block := source.read()) is not None and not block.losses:
            before += len(block.samples)
        assert block is not None
    # All of the first block and nothing of the second comes before the loss, in spite of the resampler.
    assert before == 1600
    assert [(loss.reason, loss.estimated) for loss in block.losses] == [("device_overflow", True)]
    assert source.n_overflows == 1


def test_a_recognizer_that_is_too_slow_gives_gaps_and_every_second_is_accounted_for(
    portaudio: FakeSoundDevice,
) -> None:
    audio = speak(WORDS * 2)
    source = MicrophoneSource(MicrophoneConfig(device=2, queue_s=0.3))
    with LiveRecognizer(ToneRecognizer(slowness=1.0), source) as live:
        while portaudio.stream is None or not portaudio.stream.active:
            time.sleep(0.001)
        for start in range(0, len(audio), 320):
            portaudio.hear(audio[start : start + 320])
            time.sleep(0.002)
        live.stop()
        events = list(live)
    gaps = [event for event in events if isinstance(event, Gap)]
    assert gaps
    assert {(gap.reason, gap.estimated) for gap in gaps} == {("queue_overflow", False)}
    assert live.stats.lost_s == pytest.approx(sum(gap.lost_s for gap in gaps))
    assert live.stats.audio_s + live.stats.lost_s == pytest.approx(len(audio) / 16_000, abs=1e-6)
    assert live.stats.n_gaps == live.stats.n_overflows == len(gaps)


def test_an_unplugged_device_gives_what_it_heard_then_an_error(portaudio: FakeSoundDevice) -> None:
    with MicrophoneSource(MicrophoneConfig(device=1)) as source:
        portaudio.hear(np.full(4800, 0.1, np.float32))
        assert portaudio.stream is not None
        portaudio.stream.active = False
        block = source.read()
        tail = source.read()
        assert block is not None
        assert tail is not None
        assert len(block.samples) + len(tail.samples) == 1600
        with pytest.raises(DeviceError, match=r"device 1 \(USB mic: Audio\) stopped by itself"):
            source.read()


def test_a_silent_driver_is_an_error(portaudio: FakeSoundDevice) -> None:
    config = MicrophoneConfig(device=1, stall_timeout_s=0.2)
    with MicrophoneSource(config) as source:
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"has given no audio for 0\.\d s"):
            source.read()
        assert 0.2 <= time.monotonic() - began < 5


def test_a_driver_that_does_not_close_the_stream_is_not_waited_for(
    portaudio: FakeSoundDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unregistered: list[object] = []
    monkeypatch.setattr(atexit, "unregister", unregistered.append)
    with MicrophoneSource(MicrophoneConfig(device=1)) as source:
        portaudio.hear(np.zeros(480, np.float32))
        samples, _ = read_all(source)
        monkeypatch.setattr(microphone, "_DRIVER_ANSWERS_S", 0.05)
        portaudio.answers.clear()
    assert len(samples) == 160
    assert portaudio.stream is not None
    assert not portaudio.stream.closed
    assert "did not close input device 1 (USB mic: Audio) within 0.05 s; it is left open" in caplog.text
    assert unregistered == [portaudio._exit_handler]  # it would wait for the driver again
    portaudio.answers.set()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue_s": 0}, "queue_s is 0"),
        ({"mix": "loudest"}, "mix is 'loudest'"),
        ({"sample_rate": 440}, "sample_rate is 440 Hz"),
    ],
)
def test_config_errors_say_what_and_the_value(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MicrophoneConfig(**values)
