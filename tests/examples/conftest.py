"""What the tests of the ROS 2 example share: its package on the path, and the sample as messages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "ros2" / "edge_asr_ros"))

from ros_messages import CLASSES

from edge_asr.audio import read_audio
from edge_asr.runtime import FileSource, Final, LiveRecognizer, Recognizer

MakeAudio = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def ros_package(repository: Path) -> Path:
    """The folder of the ament package."""
    return repository / "examples" / "ros2" / "edge_asr_ros"


@pytest.fixture(scope="session")
def speech(sample_path: Path) -> npt.NDArray[np.int16]:
    """The sample, 7.8 s at 16 kHz: "enter seven two five", "start recording", "go three meters and stop"."""
    samples: npt.NDArray[np.int16] = (read_audio(sample_path) * 32767).astype(np.int16)
    return samples


@pytest.fixture(scope="session")
def heard(speech: npt.NDArray[np.int16]) -> Iterator[list[Final]]:
    """What live recognition hears in it without any of this."""
    with Recognizer.load("tiny-en", num_threads=1) as recognizer:
        with LiveRecognizer(
            recognizer, FileSource(speech, sample_rate=16_000, pace=0, block_s=0.032)
        ) as live:
            finals = [event for event in live if isinstance(event, Final)]
        assert len(finals) == 3
        yield finals


@pytest.fixture(scope="session")
def audio_stamped(speech: npt.NDArray[np.int16]) -> MakeAudio:
    """`audio_stamped(samples=..., rate=...)`: messages as audio_common's capturer sends them."""

    def make(samples: npt.NDArray[np.int16] = speech, rate: int = 16_000) -> list[Any]:
        message = {
            name: CLASSES[f"audio_common_msgs/msg/{name}"] for name in ("AudioStamped", "Audio", "AudioData")
        }
        info = CLASSES["audio_common_msgs/msg/AudioInfo"](format=8, channels=1, rate=rate, chunk=512)
        return [
            message["AudioStamped"](
                audio=message["Audio"](
                    audio_data=message["AudioData"](int16_data=samples[at : at + 512].tolist()), info=info
                )
            )
            for at in range(0, len(samples), 512)
        ]

    return make


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds, for at most a minute."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, "it did not come within 60 s"
            time.sleep(0.01)

    return wait
