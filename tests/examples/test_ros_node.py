"""The node of the ROS 2 example on a STAND-IN for rclpy (ros_standin.py); nothing runs under ROS 2."""

from __future__ import annotations

import importlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ros_standin
from ros_messages import LIVE_SPEECH, OLD_LIVE_SPEECH, make_class, plain
from ros_standin import Graph, Parameter, ReliabilityPolicy, TransitionCallbackReturn, install

from edge_asr.runtime import Final

SUCCESS, FAILURE, ERROR = TransitionCallbackReturn
SPEECH, EVENTS, PARTIALS = "/humans/voices/anonymous_speaker/speech", "/edge_asr/events", "/edge_asr/partials"

Make = Callable[..., tuple[Any, Graph]]


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def make_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`node, graph = make_node(source="topic", ...)`, on the stand-in; the node is closed at the end."""
    made: list[Any] = []

    def make(live_speech: Any = None, with_audio: bool = True, **overrides: Any) -> tuple[Any, Graph]:
        graph = install(monkeypatch, live_speech, with_audio)
        graph.overrides.update({"threads": 1, "detect_loss": False, "source": "topic", **overrides})
        made.append(importlib.import_module("edge_asr_ros.node").EdgeAsrNode())
        return made[-1], graph

    yield make
    for node in made:
        node.close()


def status(graph: Graph) -> dict[str, Any]:
    graph.fire("_publish_diagnostics")
    (found,) = plain(graph.on("/diagnostics")[-1])["status"]
    return {**found, "values": {one["key"]: one["value"] for one in found["values"]}}


def test_a_whole_life(make_node: Make, heard: list[Final], audio_stamped: Any) -> None:
    node, graph = make_node(frame_id="head")
    assert status(graph)["message"] == "not configured"
    assert set(graph.publishers) == {"/diagnostics"}
    assert node.trigger_configure() is SUCCESS
    assert status(graph)["message"] == "not listening"
    assert graph.subscriptions["/audio"].type.KIND == "audio_common_msgs/msg/AudioStamped"
    graph.send("/audio", audio_stamped()[0])  # it does not listen yet
    for _ in range(2):
        graph.published.clear()
        assert node.trigger_activate() is SUCCESS
        for message in audio_stamped():
            graph.send("/audio", message)
        assert status(graph)["message"] == "listening to the topic"
        assert node.trigger_deactivate() is SUCCESS  # the last words come first
        spoken = graph.on(SPEECH)
        finals = [message for message in spoken if message.final]
        assert [message.final for message in finals] == [final.text for final in heard]
        assert all(0 < message.confidence <= 1 for message in finals)
        assert {(message.locale, message.header.frame_id) for message in spoken} == {("en_US", "head")}
        stamps = [message.header.stamp.sec + message.header.stamp.nanosec / 1e9 for message in spoken]
        assert stamps == sorted(stamps)
        assert stamps[0] > 0
        lines = [json.loads(message.data) for message in graph.on(EVENTS)]
        assert [(line["type"], line["text"]) for line in lines] == [("final", final.text) for final in heard]
        partials = [json.loads(message.data) for message in graph.on(PARTIALS)]
        assert partials
        assert [line["text"] for line in partials] == [
            message.incremental for message in spoken if not message.final
        ]
    assert {one.thread for one in graph.published if one.topic != "/diagnostics"} == {"edge-asr-live"}
    count = len(graph.published)
    graph.send("/audio", audio_stamped()[0])
    assert len(graph.published) == count
    assert node.trigger_cleanup() is SUCCESS
    assert set(graph.publishers) == {"/diagnostics"}
    assert not graph.subscriptions
    assert node.trigger_configure() is SUCCESS  # and again
    assert node.trigger_shutdown() is SUCCESS
    assert set(graph.publishers) == {"/diagnostics"}
    assert graph.log == []


def test_quality_of_service_and_callback_groups(make_node: Make) -> None:
    node, graph = make_node()
    node.trigger_configure()
    found = {topic: one._qos for topic, one in graph.publishers.items() if topic != "/diagnostics"}
    assert {topic: (qos.depth, qos.reliability) for topic, qos in found.items()} == {
        SPEECH: (50, ReliabilityPolicy.RELIABLE),
        EVENTS: (50, ReliabilityPolicy.RELIABLE),
        PARTIALS: (1, ReliabilityPolicy.BEST_EFFORT),
    }
    audio = graph.subscriptions["/audio"]
    assert audio.qos.reliability is ReliabilityPolicy.BEST_EFFORT
    groups = {timer.callback.__name__: timer.group for timer in graph.timers}
    assert groups["_publish_diagnostics"] is audio.group is not None
    assert groups["_deactivate_if_ended"] is None  # that of the transitions
    assert all(timer.clock is not None for timer in graph.timers)


def test_the_executor_never_waits_for_the_recognizer(make_node: Make, audio_stamped: Any) -> None:
    node, graph = make_node()
    blocked, free = threading.Event(), threading.Event()

    def block(published: Any) -> None:
        if published.topic == SPEECH:
            blocked.set()
            assert free.wait(60)

    graph.on_publish = block
    node.trigger_configure()
    node.trigger_activate()
    try:
        for message in audio_stamped():
            graph.send("/audio", message)
        assert blocked.wait(60)
        graph.send("/audio", audio_stamped()[0])  # these return although the recognizer stands
        assert status(graph)["level"] == b"\0"
        graph.fire("_deactivate_if_ended")
    finally:
        free.set()
    assert node.trigger_deactivate() is SUCCESS


def test_an_older_live_speech_gets_its_language(make_node: Make, audio_stamped: Any) -> None:
    node, graph = make_node(live_speech=make_class(LIVE_SPEECH, OLD_LIVE_SPEECH), locale="en_GB")
    node.trigger_configure()
    node.trigger_activate()
    for message in audio_stamped():
        graph.send("/audio", message)
    node.trigger_deactivate()
    assert {message.language for message in graph.on(SPEECH)} == {"en-GB"}


def test_parameters_are_declared_with_descriptors_and_checked(make_node: Make) -> None:
    node, _ = make_node()
    descriptor = node.describe_parameter("endpoint")
    assert descriptor.description.startswith("pause that ends an utterance")
    assert descriptor.additional_constraints == "one of default, command, dictation, agent"
    (refused,) = node.set_parameters([Parameter("endpoint", value="slow")])
    assert not refused.successful
    assert refused.reason == "endpoint is 'slow'; it must be one of default, command, dictation, agent"
    assert node.set_parameters([Parameter("endpoint", value="agent")])[0].successful
    assert node.set_parameters([Parameter("use_sim_time", value=True)])[0].successful  # not ours
    node.trigger_configure()
    (late,) = node.set_parameters([Parameter("endpoint", value="command")])
    assert late.reason == "endpoint cannot change while the node is configured; clean it up first"
    node.trigger_cleanup()
    assert node.set_parameters([Parameter("endpoint", value="command")])[0].successful


def test_what_cannot_be_configured_is_logged_in_a_sentence(make_node: Make) -> None:
    node, graph = make_node(with_audio=False)
    assert node.trigger_configure() is FAILURE
    assert set(graph.publishers) == {"/diagnostics"}
    assert graph.log[-1][1].startswith("audio_type is AudioStamped, which cannot be had here")
    node.set_parameters([Parameter("source", value="microphone"), Parameter("model", value="/no/bundle")])
    assert node.trigger_configure() is FAILURE
    assert "/no/bundle" in graph.log[-1][1]
    assert status(graph)["message"] == "not configured"
    node.set_parameters([Parameter("model", value="tiny-en"), Parameter("grammar", value="a")])
    node.set_parameters([Parameter("hotwords", value=["b"])])
    assert node.trigger_configure() is FAILURE
    assert "a grammar takes no hotwords" in graph.log[-1][1]
    assert {level for level, _ in graph.log} == {"error"}


def test_a_microphone_that_is_not_there_leaves_the_node_inactive(make_node: Make) -> None:
    node, graph = make_node(source="microphone", device="no such microphone")
    assert node.trigger_configure() is SUCCESS
    assert not graph.subscriptions
    assert node.trigger_activate() is FAILURE
    assert not graph.publishers[SPEECH].is_activated
    found = status(graph)
    assert (found["level"], found["message"]) == (b"\2", graph.log[-1][1])
    assert node.trigger_cleanup() is SUCCESS


def test_a_node_that_cannot_go_on_deactivates_itself(
    make_node: Make, audio_stamped: Any, wait_for: Any
) -> None:
    node, graph = make_node()
    node.trigger_configure()
    node.trigger_activate()
    graph.fire("_deactivate_if_ended")
    assert graph.publishers[SPEECH].is_activated
    graph.send("/audio", audio_stamped()[0])
    graph.send("/audio", audio_stamped(rate=44_100)[0])
    wait_for(node._listener.has_ended)
    graph.fire("_deactivate_if_ended")
    assert not graph.publishers[SPEECH].is_activated
    assert graph.log[-1][1].startswith(
        "listening ended: the sound of the topic changed from 16000 to 44100 Hz"
    )
    assert status(graph)["level"] == b"\2"
    assert [json.loads(message.data)["type"] for message in graph.on(EVENTS)] == ["error"]
    assert node.trigger_activate() is SUCCESS
    assert status(graph)["level"] == b"\0"


def test_a_bug_is_logged_and_leaves_the_node_unconfigured(
    make_node: Make, audio_stamped: Any, wait_for: Any
) -> None:
    node, graph = make_node()

    def fail(published: Any) -> None:
        if published.topic == SPEECH:
            raise OverflowError("no room")

    graph.on_publish = fail
    node.trigger_configure()
    node.trigger_activate()
    for message in audio_stamped():
        graph.send("/audio", message)
    wait_for(node._listener.has_ended)
    assert node.trigger_deactivate() is ERROR
    assert ("error", "on_deactivate failed with OverflowError: no room") in graph.log
    assert set(graph.publishers) == {"/diagnostics"}
    graph.on_publish = lambda published: None
    assert status(graph)["message"] == "not configured"


def test_ctrl_c_publishes_the_last_words_before_the_connection_closes(
    make_node: Make, heard: list[Final], audio_stamped: Any
) -> None:
    _, graph = make_node()
    graph.publishers.clear()  # those of the node that main makes follow
    graph.subscriptions.clear()

    def spin() -> None:
        node = graph.nodes[-1]
        node.trigger_configure()
        node.trigger_activate()
        for message in audio_stamped():
            graph.send("/audio", message)

    graph.on_spin = spin
    importlib.import_module("edge_asr_ros.node").main([])
    assert [message.final for message in graph.on(SPEECH) if message.final] == [final.text for final in heard]
    assert graph.calls == [
        "init SignalHandlerOptions.NO", "executor of 2", "executor.shutdown", "destroy_node", "shutdown"
    ]  # fmt: skip


@pytest.mark.parametrize("overrides", [{"precision": "fp64"}, {"device": 3}])
def test_a_bad_parameter_file_ends_the_program_in_a_line(
    monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]
) -> None:
    graph = install(monkeypatch)
    graph.overrides.update(overrides)
    with pytest.raises(SystemExit) as refusal:
        importlib.import_module("edge_asr_ros.node").main([])
    assert str(refusal.value).startswith("edge_asr_node: ")
    assert next(iter(overrides)) in str(refusal.value)
    assert graph.calls[-1] == "shutdown"
    assert ros_standin.GRAPH is graph
