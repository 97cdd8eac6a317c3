"""Sound of the messages of both audio_common packages, in the ROS 2 example."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edge_asr_ros.audio_messages import TopicSource, sound_from_message
from edge_asr_ros.settings import Settings
from ros_messages import CLASSES

from edge_asr.errors import AudioError
from edge_asr.runtime.live import queue_source


def lists(rate: int = 16_000, channels: int = 1, **data: Any) -> Any:
    return CLASSES["audio_common_msgs/msg/AudioStamped"](
        audio=CLASSES["audio_common_msgs/msg/Audio"](
            audio_data=CLASSES["audio_common_msgs/msg/AudioData"](**data),
            info=CLASSES["audio_common_msgs/msg/AudioInfo"](rate=rate, channels=channels),
        )
    )


def in_bytes(data: bytes) -> Any:
    return CLASSES["audio_common_msgs/msg/AudioDataBytes"](data=list(data))


@pytest.mark.parametrize(
    "data, expected",
    [
        ({"float32_data": [0.5, -0.5]}, [0.5, -0.5]),
        ({"int32_data": [2**30, -(2**30)]}, [0.5, -0.5]),
        ({"int16_data": [2**14, -(2**14)]}, [0.5, -0.5]),
        ({"int8_data": [64, -64]}, [0.5, -0.5]),
        ({"uint8_data": [192, 64]}, [0.5, -0.5]),
        ({}, []),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else "",
)
def test_every_kind_of_sample_of_the_lists_is_heard(data: dict[str, Any], expected: list[float]) -> None:
    source = TopicSource(Settings(detect_loss=False))
    source.push(lists(**data))
    source.stop()
    found = np.concatenate([block.samples for block in iter(source.read, None)] or [np.zeros(0)])
    assert found.tolist() == expected


def test_an_audio_message_without_a_stamp_and_with_channels() -> None:
    samples, rate = sound_from_message(lists(48_000, 2, int16_data=[1, 2, 3, 4]).audio, Settings())
    assert samples.tolist() == [[1, 2], [3, 4]]
    assert rate == 48_000


def test_bytes_are_what_the_parameters_say() -> None:
    settings = Settings(sample_rate=8000, channels=2, sample_format="f32le")
    data = np.array([[0.5, 1.0], [-0.5, 0.0]], "<f4")
    stamped = CLASSES["audio_common_msgs/msg/AudioDataStampedBytes"](audio=in_bytes(data.tobytes()))
    for message in (in_bytes(data.tobytes()), stamped):
        samples, rate = sound_from_message(message, settings)
        assert samples.tolist() == data.tolist()
        assert rate == 8000
    assert sound_from_message(in_bytes(b"\x01\x02"), Settings())[0].tolist() == [0x0201]


@pytest.mark.parametrize(
    "message, sentence",
    [
        (in_bytes(b"\1\2\3"), "3 bytes, which are no whole samples of s16le; set sample_format"),
        (lists(int16_data=[1], int8_data=[1]), "int16_data and int8_data; only one of them may be filled"),
        (lists(channels=2, int16_data=[1, 2, 3]), "3 samples for 2 channels; check the number of channels"),
        (lists(channels=0, int16_data=[1]), "has 0 channels; 1 to 64 can be heard"),
        (lists(rate=0, int16_data=[1]), "the sample rate is 0; give whole Hz"),
    ],
)
def test_a_message_that_cannot_be_heard_ends_the_source_in_a_sentence(message: Any, sentence: str) -> None:
    source = TopicSource(Settings())
    source.push(message)
    with pytest.raises(AudioError, match=sentence):
        source.read()


def test_another_rate_ends_the_source_after_what_came_before() -> None:
    source = TopicSource(Settings(detect_loss=False))
    source.push(lists(int16_data=[1, 2]))
    source.push(lists(rate=48_000, int16_data=[3]))
    block = source.read()
    assert block is not None
    assert len(block.samples) == 2
    with pytest.raises(AudioError, match="changed from 16000 to 48000 Hz; let one publisher"):
        source.read()


@pytest.mark.parametrize("detects", [True, False])
def test_sound_that_is_missing_by_the_clock_is_a_loss(monkeypatch: pytest.MonkeyPatch, detects: bool) -> None:
    now = 100.0
    monkeypatch.setattr(queue_source, "time", SimpleNamespace(monotonic=lambda: now))
    source = TopicSource(Settings(detect_loss=detects))
    for n in range(200):  # 4 s of sound in 5 s
        now += 0.02 if n != 100 else 1.02
        source.push(lists(int16_data=[0] * 320))
    source.stop()
    losses = [loss for block in iter(source.read, None) for loss in block.losses]
    assert [(loss.reason, round(loss.lost_s)) for loss in losses] == ([("missing", 1)] if detects else [])


def test_a_source_that_is_stopped_before_the_first_message_ends() -> None:
    source = TopicSource(Settings())
    reader = threading.Thread(target=source.read, daemon=True)
    reader.start()
    source.stop()
    reader.join(60)
    assert not reader.is_alive()
