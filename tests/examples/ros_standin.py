"""A STAND-IN for rclpy and for the message packages, with which the node of the ROS 2 example is tested here.

It is not rclpy, which is on neither PyPI nor Debian: what passes with it may still fail under ROS 2. It
holds only names and arguments that rclpy has; test_ros_standin.py has the list, and where it was read. What
happened is kept in the `Graph`, which no node sees. Callbacks of timers and subscriptions run when a test
says so. The file is above 400 lines because one library is stood in for in one place.
"""

from __future__ import annotations

import enum
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
from ros_messages import CLASSES, LIVE_SPEECH


@dataclass
class Published:
    topic: str
    message: Any
    thread: str


@dataclass
class Graph:
    """What the stand-in was asked to do.

    Attributes:
        overrides: parameters as a file of the user has them.
        published: everything that reached a topic, in order.
        on_publish: called first with each; what it raises, `publish` raises.
        publishers, subscriptions: those that live, by topic.
        on_spin: what happens while an executor spins; then Ctrl-C is pressed.
        log: the level and text of each message; calls: of functions without a better place.
    """

    overrides: dict[str, Any] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)
    on_publish: Callable[[Published], None] = lambda published: None
    publishers: dict[str, Any] = field(default_factory=dict)
    subscriptions: dict[str, Any] = field(default_factory=dict)
    timers: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    on_spin: Callable[[], None] = lambda: None
    log: list[tuple[str, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def on(self, topic: str) -> list[Any]:
        return [one.message for one in list(self.published) if one.topic == topic]

    def fire(self, name: str) -> None:
        """Let the timer go off that has this callback."""
        (timer,) = [timer for timer in self.timers if timer.callback.__name__ == name]
        timer.callback()

    def send(self, topic: str, message: Any) -> None:
        self.subscriptions[topic].callback(message)


GRAPH = Graph()


class TransitionCallbackReturn(enum.Enum):
    SUCCESS = 0
    FAILURE = 1
    ERROR = 2


class LifecycleState(NamedTuple):
    label: str
    state_id: int


class ParameterException(Exception):
    pass


class InvalidParameterTypeException(ParameterException):
    def __init__(self, desired_parameter: Any, expected_type: str) -> None:
        super().__init__(
            f"Trying to set parameter '{desired_parameter.name}' to something else than {expected_type}"
        )


class InvalidParameterValueException(ParameterException):
    def __init__(self, parameter: str, value: Any, reason: str) -> None:
        super().__init__(f"Invalid parameter value ({value}) for parameter '{parameter}'. Reason: {reason}")


class Parameter:
    def __init__(self, name: str, type_: Any = None, value: Any = None) -> None:
        self._name, self._value = name, value

    @property
    def name(self) -> str:
        return self._name

    @property
    def value(self) -> Any:
        return self._value


class ReliabilityPolicy(enum.IntEnum):
    RELIABLE = 1
    BEST_EFFORT = 2


class QoSProfile:
    def __init__(self, *, depth: int, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE) -> None:
        self._depth, self._reliability = depth, reliability

    @property
    def depth(self) -> int:
        return self._depth

    @property
    def reliability(self) -> ReliabilityPolicy:
        return self._reliability


class QoSOverridingOptions:
    @classmethod
    def with_default_policies(cls) -> QoSOverridingOptions:
        return cls()


class MutuallyExclusiveCallbackGroup:
    pass


class ClockType(enum.IntEnum):
    STEADY_TIME = 3


class Time:
    def __init__(self, *, nanoseconds: int = 0) -> None:
        self._nanoseconds = nanoseconds

    def to_msg(self) -> Any:
        sec, nanosec = divmod(self._nanoseconds, 10**9)
        return CLASSES["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)


class Clock:
    def __new__(cls, *, clock_type: ClockType | None = None) -> Clock:
        return super().__new__(cls)

    def now(self) -> Time:
        return Time(nanoseconds=time.time_ns())


class RcutilsLogger:
    def info(self, message: str) -> None:
        GRAPH.log.append(("info", message))

    def error(self, message: str) -> None:
        GRAPH.log.append(("error", message))


class Publisher:
    def __init__(self, msg_type: Any, topic: str, qos_profile: QoSProfile) -> None:
        self._type, self._topic, self._qos = msg_type, topic, qos_profile

    def publish(self, msg: Any) -> None:
        if not isinstance(msg, self._type):
            raise TypeError(f"Expected {self._type}, got {type(msg)}")
        if GRAPH.publishers.get(self._topic) is not self or "shutdown" in GRAPH.calls:
            raise RuntimeError(f"the publisher of {self._topic} was destroyed")
        published = Published(self._topic, msg, threading.current_thread().name)
        GRAPH.on_publish(published)
        GRAPH.published.append(published)


class LifecyclePublisher(Publisher):
    _enabled = False

    @property
    def is_activated(self) -> bool:
        return self._enabled

    def publish(self, msg: Any) -> None:
        if self._enabled:
            super().publish(msg)


class Node:
    def __init__(self, node_name: str) -> None:
        self._name = node_name
        self._parameters: dict[str, Parameter] = {}
        self._descriptors: dict[str, Any] = {}
        self._callbacks: list[Callable[[list[Parameter]], Any]] = []
        GRAPH.nodes.append(self)

    def get_name(self) -> str:
        return self._name

    def get_logger(self) -> RcutilsLogger:
        return RcutilsLogger()

    def get_clock(self) -> Clock:
        return Clock()

    def declare_parameter(self, name: str, value: Any = None, descriptor: Any = None) -> Parameter:
        parameter = Parameter(name, value=GRAPH.overrides.get(name, value))
        self._parameters[name], self._descriptors[name] = Parameter(name, value=value), descriptor
        if type(parameter.value) is not type(value):
            raise InvalidParameterTypeException(parameter, type(value).__name__)
        (result,) = self.set_parameters([parameter])
        if not result.successful:
            raise InvalidParameterValueException(name, parameter.value, result.reason)
        return parameter

    def get_parameter(self, name: str) -> Parameter:
        return self._parameters[name]

    def describe_parameter(self, name: str) -> Any:
        return self._descriptors[name]

    def set_parameters(self, parameter_list: list[Parameter]) -> list[Any]:
        results = []
        for parameter in parameter_list:
            answers = [callback([parameter]) for callback in self._callbacks]
            refused = [answer for answer in answers if not answer.successful]
            if not refused:
                self._parameters[parameter.name] = parameter
            results.append((refused or answers)[0])
        return results

    def add_on_set_parameters_callback(self, callback: Callable[[list[Parameter]], Any]) -> None:
        self._callbacks.insert(0, callback)

    def create_publisher(self, msg_type: Any, topic: str, qos_profile: Any) -> Publisher:
        return self._add(GRAPH.publishers, Publisher(msg_type, self._full(topic), qos_profile))

    def create_subscription(
        self,
        msg_type: Any,
        topic: str,
        callback: Callable[[Any], None],
        qos_profile: QoSProfile,
        *,
        callback_group: Any = None,
        qos_overriding_options: Any = None,
    ) -> Any:
        found = SimpleNamespace(
            _topic=self._full(topic), type=msg_type, callback=callback, qos=qos_profile, group=callback_group
        )
        return self._add(GRAPH.subscriptions, found)

    def create_timer(
        self,
        timer_period_sec: float,
        callback: Callable[[], None],
        callback_group: Any = None,
        clock: Clock | None = None,
    ) -> Any:
        GRAPH.timers.append(SimpleNamespace(callback=callback, group=callback_group, clock=clock))
        return GRAPH.timers[-1]

    def destroy_publisher(self, publisher: Publisher) -> bool:
        return GRAPH.publishers.pop(publisher._topic, None) is not None

    def destroy_subscription(self, subscription: Any) -> bool:
        return GRAPH.subscriptions.pop(subscription._topic, None) is not None

    def destroy_node(self) -> None:
        GRAPH.calls.append("destroy_node")

    def _add(self, where: dict[str, Any], entity: Any) -> Any:
        assert entity._topic not in where, f"{entity._topic} was made twice"
        where[entity._topic] = entity
        return entity

    def _full(self, topic: str) -> str:
        return topic if topic.startswith("/") else "/" + topic.replace("~", self._name, 1)


_S, _F, _E = (
    TransitionCallbackReturn.SUCCESS,
    TransitionCallbackReturn.FAILURE,
    TransitionCallbackReturn.ERROR,
)
#: Where a transition starts, and where it leads; design.ros2.org/articles/node_lifecycle.html.
_TRANSITIONS = {
    "configure": (("unconfigured",), "inactive", "unconfigured"),
    "activate": (("inactive",), "active", "inactive"),
    "deactivate": (("active",), "inactive", "active"),
    "cleanup": (("inactive",), "unconfigured", "inactive"),
    "shutdown": (("unconfigured", "inactive", "active"), "finalized", "finalized"),
}


class LifecycleNode(Node):
    def __init__(self, node_name: str) -> None:
        super().__init__(node_name)
        self._state = "unconfigured"
        self._managed: list[LifecyclePublisher] = []

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return _S

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        return _S

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return _S

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._enable(True)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._enable(False)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        return _S

    def create_lifecycle_publisher(
        self, msg_type: Any, topic: str, qos_profile: QoSProfile, *, qos_overriding_options: Any = None
    ) -> LifecyclePublisher:
        publisher = LifecyclePublisher(msg_type, self._full(topic), qos_profile)
        self._managed.append(publisher)
        added: LifecyclePublisher = self._add(GRAPH.publishers, publisher)
        return added

    def destroy_lifecycle_publisher(self, publisher: LifecyclePublisher) -> bool:
        self._managed.remove(publisher)
        return self.destroy_publisher(publisher)

    def trigger_configure(self) -> TransitionCallbackReturn:
        return self._change("configure")

    def trigger_activate(self) -> TransitionCallbackReturn:
        return self._change("activate")

    def trigger_deactivate(self) -> TransitionCallbackReturn:
        return self._change("deactivate")

    def trigger_cleanup(self) -> TransitionCallbackReturn:
        return self._change("cleanup")

    def trigger_shutdown(self) -> TransitionCallbackReturn:
        return self._change("shutdown")

    def _enable(self, enabled: bool) -> TransitionCallbackReturn:
        for publisher in self._managed:
            publisher._enabled = enabled
        return _S

    def _change(self, transition: str) -> TransitionCallbackReturn:
        starts, reached, failed = _TRANSITIONS[transition]
        assert self._state in starts, f"{transition} from {self._state}"
        before = LifecycleState(self._state, 0)
        try:
            result: TransitionCallbackReturn = getattr(self, f"on_{transition}")(before)
        except Exception:  # noqa: BLE001 - as rclpy does, which says nothing
            result = _E
        if result is _E:
            self._state = "unconfigured" if self.on_error(before) is _S else "finalized"
        else:
            self._state = reached if result is _S else failed
        return result


class MultiThreadedExecutor:
    def __init__(self, num_threads: int | None = None) -> None:
        GRAPH.calls.append(f"executor of {num_threads}")

    def add_node(self, node: Node) -> bool:
        return True

    def spin(self) -> None:
        GRAPH.on_spin()
        raise KeyboardInterrupt

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        GRAPH.calls.append("executor.shutdown")
        return True


class SignalHandlerOptions(enum.Enum):
    NO = 0


def init(
    *, args: list[str] | None = None, signal_handler_options: SignalHandlerOptions | None = None
) -> None:
    GRAPH.calls.append(f"init {signal_handler_options}")


def shutdown() -> None:
    GRAPH.calls.append("shutdown")


MODULES: dict[str, tuple[Any, ...]] = {
    "rclpy": (init, shutdown),
    "rclpy.callback_groups": (MutuallyExclusiveCallbackGroup,),
    "rclpy.clock": (Clock, ClockType),
    "rclpy.exceptions": (ParameterException, InvalidParameterTypeException, InvalidParameterValueException),
    "rclpy.executors": (MultiThreadedExecutor,),
    "rclpy.lifecycle": (LifecycleNode, LifecyclePublisher, LifecycleState, TransitionCallbackReturn),
    "rclpy.node": (Node,),
    "rclpy.parameter": (Parameter,),
    "rclpy.publisher": (Publisher,),
    "rclpy.qos": (QoSProfile, ReliabilityPolicy),
    "rclpy.qos_overriding_options": (QoSOverridingOptions,),
    "rclpy.signals": (SignalHandlerOptions,),
    "rclpy.time": (Time,),
    "rclpy.impl.rcutils_logger": (RcutilsLogger,),
}


def install(monkeypatch: pytest.MonkeyPatch, live_speech: Any = None, with_audio: bool = True) -> Graph:
    """Put the stand-in in the place of rclpy and of the message packages, and give its empty graph."""
    packages: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, made in CLASSES.items():
        package, _, kind = name.split("/")
        packages[package][kind] = made
    packages["hri_msgs"]["LiveSpeech"] = live_speech or CLASSES[LIVE_SPEECH]
    if not with_audio:
        del packages["audio_common_msgs"]
        monkeypatch.setitem(sys.modules, "audio_common_msgs", None)
    contents = {name: {one.__name__: one for one in names} for name, names in MODULES.items()}
    contents |= {"rclpy.impl": {}, **{package: {} for package in packages}}
    contents |= {f"{package}.msg": kinds for package, kinds in packages.items()}
    for name, names in contents.items():
        module = ModuleType(name, "A stand-in for tests.")
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "edge_asr_ros.node", raising=False)
    monkeypatch.setitem(globals(), "GRAPH", Graph())
    return GRAPH
