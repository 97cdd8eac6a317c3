"""The microphone against a fake sounddevice: what real hardware does rarely, done on demand.

The recording process is a thread here, with the same pipes, so that a test can be the driver.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event as Flag
from threading import Semaphore, Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tones import WORDS, ToneRecognizer, silence, speak

from edge_asr.errors import ConfigError, DeviceError
from edge_asr.runtime.live import capture, recording_process
from edge_asr.runtime.live.capture import InputDevice, choose_again
from edge_asr.runtime.live.events import DeviceChange, Event, Final, Gap, Partial
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
        self.n_streams = 0
        self.taken = Semaphore(0)
        self.refuses: Callable[[dict[str, Any]], bool] = lambda wanted: False
        self.breaks_on_start = False
        self.answers = Flag()
        self.answers.set()

    def query_devices(self) -> list[dict[str, Any]]:
        self.answers.wait(timeout=30)
        return self.devices

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "ALSA"}]

    def RawInputStream(self, **wanted: Any) -> FakeStream:
        if self.refuses(wanted):
            raise FakePortAudioError("Invalid number of channels [PaErrorCode -9998]")
        self.stream = FakeStream(self, wanted)
        self.n_streams += 1
        return self.stream

    def hear(self, samples: np.ndarray, *, overflow: bool = False) -> None:
        """The driver's callback with one block: f32 [n] is put on every channel, scaled by its number + 1.

        It returns when the block has arrived on the other side of the pipe.
        """
        assert self.stream is not None
        n_channels = self.stream.wanted["channels"]
        data = np.stack([samples * (c + 1) for c in range(n_channels)], axis=1).astype(np.float32)
        status = SimpleNamespace(input_overflow=overflow)
        self.stream.wanted["callback"](data.tobytes(), len(samples), None, status)
        assert self.taken.acquire(timeout=10)

    def unplug(self) -> None:
        """What the driver does when its device is gone."""
        assert self.stream is not None
        self.stream.active = False
        self.devices = [device for device in self.devices if device["name"] != "USB mic: Audio"]

    def replug(self) -> None:
        """The device is back, behind another one that is new."""
        new = {**DEVICES[1], "name": "webcam"}
        self.devices = [*self.devices[:1], new, DEVICES[1], *self.devices[1:]]


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


class CaptureThread:
    """A fake of subprocess.Popen: `capture.serve` in a thread; killed, it is left alone."""

    def __init__(self, request: dict[str, Any]) -> None:
        input_fd, to_input = os.pipe()
        from_output, output_fd = os.pipe()
        self.stdin, self.stdout = os.fdopen(to_input, "wb"), os.fdopen(from_output, "rb")
        self.thread = Thread(target=capture.serve, args=(request, input_fd, output_fd), daemon=True)
        self.thread.start()

    def kill(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None:
            self.thread.join(timeout)
            if self.thread.is_alive():
                raise subprocess.TimeoutExpired("capture", timeout)
        return 0


def fake_portaudio(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    """Put the fake in the place of sounddevice, and a thread in that of the recording process."""
    fake = FakeSoundDevice()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(recording_process, "start_capture", CaptureThread)
    take = recording_process.RecordingProcess._take

    def take_and_tell(*arguments: Any) -> None:
        take(*arguments)
        fake.taken.release()

    monkeypatch.setattr(recording_process.RecordingProcess, "_take", take_and_tell)
    return fake


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    return fake_portaudio(monkeypatch)


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

    monkeypatch.setattr(recording_process, "start_capture", CaptureThread)
    monkeypatch.setattr("edge_asr.runtime.live.capture.importlib.import_module", refuse)
    with pytest.raises(DeviceError, match=r"PortAudio library not found.*apt install libportaudio2"):
        list_devices()


def test_no_sounddevice_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_process, "start_capture", CaptureThread)
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
    with MicrophoneSource(MicrophoneConfig(device=1, reconnect_s=0)) as source:
        portaudio.hear(np.full(4800, 0.1, np.float32))
        portaudio.unplug()
        block = source.read()
        tail = source.read()
        assert block is not None
        assert tail is not None
        assert len(block.samples) + len(tail.samples) == 1600
        for _ in range(2):
            with pytest.raises(DeviceError, match=r"device 1 \(USB mic: Audio\) stopped by itself"):
                source.read()


def hear_words(portaudio: FakeSoundDevice, words: Sequence[str]) -> None:
    """The driver hears words and a little silence, at the rate it was opened with."""
    assert portaudio.stream is not None
    rate = portaudio.stream.wanted["samplerate"]
    for block in np.array_split(np.concatenate([speak(words, rate=rate), silence(0.2, rate=rate)]), 30):
        portaudio.hear(block)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_microphone_comes_back_under_another_index_and_rate(portaudio: FakeSoundDevice) -> None:
    """The words before it was unplugged are final at once, not when it is back."""
    events: list[Event] = []
    source = MicrophoneSource(MicrophoneConfig(device=1))
    with LiveRecognizer(ToneRecognizer(), source, on_event=events.append) as live:
        wait_until(lambda: source.device is not None)
        hear_words(portaudio, ["alpha", "bravo"])
        unplugged = time.monotonic()
        portaudio.unplug()
        wait_until(lambda: any(isinstance(event, DeviceChange) for event in events))
        assert [event.text for event in events if isinstance(event, Final)] == ["alpha bravo"]
        time.sleep(0.3)
        portaudio.replug()
        portaudio.devices[2] = {**DEVICES[1], "default_samplerate": 16000.0}
        wait_until(lambda: portaudio.n_streams == 2 and portaudio.stream.active)  # type: ignore[union-attr]
        away_s = time.monotonic() - unplugged
        hear_words(portaudio, ["charlie", "delta"])
        live.stop()
    shown = [event for event in events if not isinstance(event, Partial)]
    assert [type(event) for event in shown] == [Final, DeviceChange, Gap, DeviceChange, Final]
    first, lost, gap, back, last = shown
    assert isinstance(first, Final)
    assert isinstance(last, Final)
    assert isinstance(gap, Gap)
    assert isinstance(lost, DeviceChange)
    assert isinstance(back, DeviceChange)
    assert (first.text, first.reason, last.text) == ("alpha bravo", "gap", "charlie delta")
    assert (lost.state, back.state) == ("lost", "back")
    assert "stopped by itself; was it unplugged? it is opened again as soon" in lost.message
    assert back.message == "input device 2 (USB mic: Audio) is back, at 16000 Hz"
    assert (gap.reason, gap.estimated, live.stats.n_overflows) == ("device_lost", True, 0)
    assert gap.lost_s == pytest.approx(away_s, abs=0.3)
    assert gap.at_s == lost.at_s == pytest.approx(2 * 0.37 + 0.2, abs=0.01)
    assert set(lost.to_dict()) == {"type", "state", "device", "message", "at_s"}


def test_a_microphone_that_stays_away_is_an_error_after_a_while(portaudio: FakeSoundDevice) -> None:
    with MicrophoneSource(MicrophoneConfig(device="usb mic", reconnect_s=0.3)) as source:
        portaudio.hear(np.full(4800, 0.1, np.float32))
        portaudio.unplug()
        blocks = [source.read()]
        while not blocks[-1].losses:  # type: ignore[union-attr]
            blocks.append(source.read())
        words = r"\(USB mic: Audio\) did not come back within 0\.3 s: .*not there"
        with pytest.raises(DeviceError, match=words):
            source.read()
    assert [change.state for block in blocks for change in block.changes] == ["lost"]  # type: ignore[union-attr]
    (loss,) = blocks[-1].losses  # type: ignore[union-attr]
    assert 0.3 <= loss.lost_s < 10


def test_stopped_while_it_is_away_it_still_reports_how_long(portaudio: FakeSoundDevice) -> None:
    with MicrophoneSource(MicrophoneConfig(device=1)) as source:
        portaudio.hear(np.full(4800, 0.1, np.float32))
        portaudio.unplug()
        while not source.read().changes:  # type: ignore[union-attr]
            pass
        Thread(target=lambda: (time.sleep(0.2), source.stop())).start()
        last = source.read()
        assert last is not None
        assert [loss.reason for loss in last.losses] == ["device_lost"]
        assert 0.2 <= last.losses[0].lost_s < 5
        assert source.read() is None


def test_a_microphone_that_is_waited_for(portaudio: FakeSoundDevice) -> None:
    portaudio.devices = [DEVICES[0]]
    with MicrophoneSource(MicrophoneConfig(device="usb mic", wait=True)) as source:
        block = source.read()
        assert block is not None
        assert [change.state for change in block.changes] == ["waiting"]
        assert block.changes[0].message.startswith("waiting for input device 'usb mic': no microphone found")
        portaudio.devices = DEVICES
        Thread(
            target=lambda: (wait_until(lambda: source.device is not None), portaudio.hear(np.ones(4800)))
        ).start()
        block = source.read()
        assert block is not None
        assert (block.losses, block.changes) == ((), ())
        assert len(block.samples)


def test_a_silent_driver_is_a_lost_one(portaudio: FakeSoundDevice) -> None:
    config = MicrophoneConfig(device=1, stall_timeout_s=0.2, reconnect_s=0)
    with MicrophoneSource(config) as source:
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"has given no audio for 0\.\d s"):
            source.read()
        assert 0.2 <= time.monotonic() - began < 5


def test_a_muted_microphone_is_told_once_and_nothing_is_cut_out(portaudio: FakeSoundDevice) -> None:
    changes = []
    heard = 0
    with MicrophoneSource(MicrophoneConfig(device=2)) as source:
        for level in (0.1, *(0.0,) * 13, 0.1):
            portaudio.hear(np.full(8000, level, np.float32))
        source.stop()
        while (block := source.read()) is not None:
            heard += len(block.samples)
            changes += [(change.state, heard / 16_000) for change in block.changes]
    assert changes == [("silent", 5.5), ("audible", 7.5)]
    assert heard == 15 * 8000


@pytest.mark.parametrize("frozen", ["at the beginning", "while it listens"])
def test_a_sound_server_that_hangs_is_not_waited_for(portaudio: FakeSoundDevice, frozen: str) -> None:
    source = MicrophoneSource(MicrophoneConfig(device=1))
    if frozen == "at the beginning":
        portaudio.answers.clear()
    with LiveRecognizer(ToneRecognizer(), source) as live:
        if frozen == "while it listens":
            wait_until(lambda: source.device is not None)
            hear_words(portaudio, ["golf"])
            portaudio.answers.clear()
        began = time.monotonic()
        live.stop()
        events = list(live)
    assert time.monotonic() - began < 3
    assert [event.text for event in events if isinstance(event, Final)] == ["golf"] * (
        frozen != "at the beginning"
    )
    assert live.error is None
    portaudio.answers.set()


def test_a_sound_server_that_does_not_answer_says_so(
    portaudio: FakeSoundDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_process, "_ANSWERS_S", 0.2)
    portaudio.answers.clear()
    for ask in (list_devices, MicrophoneSource().__enter__):
        with pytest.raises(DeviceError, match=r"has not answered for 0\.2 s; is the sound server frozen\?"):
            ask()
    portaudio.answers.set()


DEVICE = InputDevice(index=0, name="", host_api="ALSA", max_channels=1, sample_rate=48_000, is_default=False)


@pytest.mark.parametrize(
    ("today", "chosen"),
    [
        (["HDA (hw:0,0)", "USB (hw:1,0)"], "USB (hw:1,0)"),
        (["HDA (hw:0,0)", "USB (hw:2,0)"], "USB (hw:2,0)"),
        (["USB (hw:2,0)", "USB (hw:1,0)"], "USB (hw:1,0)"),
        (["HDA (hw:0,0)", "USB (hw:3,0)"], None),  # its twin, which was there before
        (["USB (hw:4,0)", "USB (hw:5,0)"], None),
        ([], None),
    ],
)
def test_which_device_is_the_one_that_went_away(today: list[str], chosen: str | None) -> None:
    devices = [replace(DEVICE, index=index, name=name) for index, name in enumerate(today)]
    if chosen is None:
        with pytest.raises(DeviceError, match=r"USB \(hw:1,0\) is not there; there are"):
            choose_again(devices, "USB (hw:1,0)", ["HDA (hw:0,0)", "USB (hw:3,0)"])
    else:
        assert choose_again(devices, "USB (hw:1,0)", ["HDA (hw:0,0)", "USB (hw:3,0)"]).name == chosen


def test_a_recording_process_that_dies_is_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match="the recording process has ended"):
        list_devices()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DeviceError, match="the recording process cannot be started with '/no/such/python'"):
        list_devices()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue_s": 0}, "queue_s is 0"),
        ({"mix": "loudest"}, "mix is 'loudest'"),
        ({"sample_rate": 440}, "sample_rate is 440 Hz"),
        ({"reconnect_s": -1}, "reconnect_s is -1"),
        ({"stall_timeout_s": float("inf")}, "stall_timeout_s is inf"),
    ],
)
def test_config_errors_say_what_and_the_value(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MicrophoneConfig(**values)
