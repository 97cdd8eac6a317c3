"""What the node of the ROS 2 example publishes, on a real wire: DDS on loopback, and CDR of two libraries.

The node runs on a STAND-IN for rclpy; a small adapter hands its messages to Cyclone DDS, which one of the
middlewares of ROS 2 uses, under the names that ROS 2 gives to topics and types. A second process reads them.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ros_wire
from ros_messages import CLASSES, LIVE_SPEECH, plain
from ros_standin import install

from edge_asr.runtime import Final

pytest.importorskip("rosbags", reason="rosbags is not installed; it is in edge-asr[test]")
pytest.importorskip(
    "cyclonedds", reason="cyclonedds is not installed; it has wheels for Linux on x86-64 alone"
)

DOMAIN = 100 + os.getpid() % 100  # apart from what else runs on this machine
SPEECH = "/humans/voices/anonymous_speaker/speech"


def header() -> Any:
    stamp = CLASSES["builtin_interfaces/msg/Time"](sec=1_790_000_000, nanosec=999_999_999)
    return CLASSES["std_msgs/msg/Header"](stamp=stamp, frame_id="head")


def messages() -> list[Any]:
    """One of each type that goes over a topic, with text that is not ASCII, odd lengths and empty parts."""
    audio_data = CLASSES["audio_common_msgs/msg/AudioData"](int16_data=[1, -2, 3], float32_data=[0.5])
    info = CLASSES["audio_common_msgs/msg/AudioInfo"](format=8, channels=1, rate=16_000, chunk=3)
    audio = CLASSES["audio_common_msgs/msg/Audio"](audio_data=audio_data, info=info)
    in_bytes = CLASSES["audio_common_msgs/msg/AudioDataBytes"](data=[1, 2, 255])
    value = CLASSES["diagnostic_msgs/msg/KeyValue"](key="n_gaps", value="0")
    status = CLASSES["diagnostic_msgs/msg/DiagnosticStatus"](
        level=b"\1", name="edge_asr", values=[value, value]
    )
    speech = CLASSES[LIVE_SPEECH]
    return [
        speech(header=header(), incremental="un café", locale="fr_FR"),
        speech(header=header(), final="go three meters", confidence=0.123456789),
        speech(),
        CLASSES["std_msgs/msg/String"](data='{"type": "final", "text": "Über"}'),
        CLASSES["audio_common_msgs/msg/AudioStamped"](header=header(), audio=audio),
        in_bytes,
        CLASSES["audio_common_msgs/msg/AudioDataStampedBytes"](header=header(), audio=in_bytes),
        CLASSES["diagnostic_msgs/msg/DiagnosticArray"](header=header(), status=[status]),
    ]


@pytest.mark.parametrize("message", messages(), ids=lambda message: type(message).__name__)
def test_two_libraries_write_the_same_bytes(message: Any) -> None:
    store = ros_wire.make_typestore()
    ours = ros_wire.rosbags_from_message(store, message)
    expected = bytes(store.serialize_cdr(ours, message.KIND))
    sent = ros_wire.dds_from_message(message).serialize()
    assert sent == expected
    decoded = store.deserialize_cdr(sent, message.KIND)
    assert bytes(store.serialize_cdr(decoded, message.KIND)) == expected


def test_a_second_process_reads_over_dds_what_the_node_says(
    monkeypatch: pytest.MonkeyPatch, heard: list[Final], audio_stamped: Any, wait_for: Any
) -> None:
    monkeypatch.setenv("CYCLONEDDS_URI", ros_wire.CONFIGURATION)
    graph = install(monkeypatch)
    graph.overrides.update({"threads": 1, "detect_loss": False, "source": "topic", "frame_id": "head"})
    node = importlib.import_module("edge_asr_ros.node").EdgeAsrNode()
    assert node.trigger_configure().name == "SUCCESS"
    qos = graph.publishers[SPEECH]._qos
    writer = ros_wire.make_endpoint(
        DOMAIN, SPEECH, LIVE_SPEECH, writes=True, qos=(qos.depth, qos.reliability.name == "RELIABLE")
    )

    def to_dds(published: Any) -> None:
        """The adapter: what rclpy and its middleware do with a message."""
        if published.topic == SPEECH:
            writer.write(ros_wire.dds_from_message(published.message))

    graph.on_publish = to_dds
    command = [sys.executable, str(Path(ros_wire.__file__)), str(DOMAIN), SPEECH, LIVE_SPEECH, "120"]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: bool(writer.get_matched_subscriptions()) or reader.poll() is not None)
        assert reader.poll() is None, reader.stderr.read()  # type: ignore[union-attr]
        node.trigger_activate()
        for message in audio_stamped():
            graph.send("/audio", message)
        node.trigger_deactivate()
        assert writer.wait_for_acks(60 * 10**9)
        output, errors = reader.communicate(timeout=120)
    finally:
        reader.kill()
        node.close()
    assert reader.returncode == 0, errors
    lines = [json.loads(line) for line in output.splitlines()]
    spoken = graph.on(SPEECH)
    assert [line["message"] for line in lines] == [plain(message) for message in spoken]
    said = [line["message"]["final"] for line in lines if line["message"]["final"]]
    assert said == [final.text for final in heard]
    store = ros_wire.make_typestore()
    for line, message in zip(lines, spoken, strict=True):
        expected = bytes(store.serialize_cdr(ros_wire.rosbags_from_message(store, message), LIVE_SPEECH))
        received = bytes.fromhex(line["cdr"])  # padded to a multiple of 4
        assert received[: len(expected)] == expected
        assert not any(received[len(expected) :])
