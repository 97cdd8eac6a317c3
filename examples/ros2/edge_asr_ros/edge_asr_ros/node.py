"""The ROS 2 node: parameters, life cycle, publishers, diagnostics. What it does is in listener.py.

    unconfigured --configure--> inactive: the model is loaded, topics are there
    inactive --activate--> active: it listens
    active --deactivate--> inactive: the last words are published first

Recognition publishes from a thread of its own, so no callback of the executor computes. Transitions wait:
configuring for the model, deactivation for the last words. Sound and diagnostics have another callback group
than the transitions, so they go on meanwhile. If listening ends by itself, the node deactivates itself.
"""

from __future__ import annotations

import functools
import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from hri_msgs.msg import LiveSpeech
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr_ros.listener import Listener, Output, close_quietly
from edge_asr_ros.settings import ABOUT, Settings, constraint, defaults, settings_from_values

SPEECH_TOPIC = "/humans/voices/anonymous_speaker/speech"
"""Where ROS4HRI (REP 155) has the speech of a voice that nobody has identified; remap it for another."""

# Keep last, so that a slow subscriber makes nobody wait.
RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
#: What both reliable and best-effort publishers of audio can serve.
AUDIO = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)

_LEVELS = {"ok": DiagnosticStatus.OK, "warn": DiagnosticStatus.WARN, "error": DiagnosticStatus.ERROR}

_Transition = Callable[["EdgeAsrNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: _Transition) -> _Transition:
    """Log what a transition raises, which rclpy does not; an expected error is a FAILURE."""

    @functools.wraps(transition)
    def call(node: EdgeAsrNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except EdgeAsrError as error:
            node.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as bug:  # noqa: BLE001 - on_error is called for it
            node.get_logger().error(f"{transition.__name__} failed with {type(bug).__name__}: {bug}")
            return TransitionCallbackReturn.ERROR

    return call


class EdgeAsrNode(LifecycleNode):
    """Publishes what it hears: `LiveSpeech`, and each event as a line of JSON."""

    def __init__(self) -> None:
        super().__init__("edge_asr")
        self._listener: Listener | None = None
        self._listening = False
        self._settings = Settings()
        self._entities: list[Any] = []
        self.add_on_set_parameters_callback(self._check_parameters)
        for name, default in defaults().items():
            descriptor = ParameterDescriptor(description=ABOUT[name], additional_constraints=constraint(name))
            self.declare_parameter(name, default, descriptor)
        self._beside = MutuallyExclusiveCallbackGroup()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        clock = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self.create_timer(1.0, self._publish_diagnostics, callback_group=self._beside, clock=clock)
        self.create_timer(0.5, self._deactivate_if_ended, clock=clock)  # never during a transition

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, and make publishers and the subscription."""
        settings = settings_from_values({name: self.get_parameter(name).value for name in defaults()})
        message_type = _find_message_type(settings) if settings.source == "topic" else None
        self._listener, self._settings = Listener(settings, self._publish), settings
        self._speech = self._make_publisher(LiveSpeech, SPEECH_TOPIC, RELIABLE)
        self._events = self._make_publisher(String, "~/events", RELIABLE)
        self._partials = self._make_publisher(String, "~/partials", NEWEST)
        if message_type is not None:
            overrides = QoSOverridingOptions.with_default_policies()
            subscription = self.create_subscription(
                message_type,
                "audio",
                self._hear,
                AUDIO,
                callback_group=self._beside,
                qos_overriding_options=overrides,
            )
            self._entities.append((self.destroy_subscription, subscription))
        return super().on_configure(state)

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to listen."""
        assert self._listener is not None
        done = super().on_activate(state)  # first, or the publishers would drop what is heard
        try:
            self._listener.start()
        except EdgeAsrError:
            super().on_deactivate(state)
            raise
        self._listening = True
        return done

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, publish the last words, then close the publishers."""
        assert self._listener is not None
        self._listening = False
        try:
            self._listener.stop()
        except EdgeAsrError as error:
            raise RuntimeError(str(error)) from error  # no failure: the node would count as active
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the topics."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Publish the last words, if it listens, and free everything."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything after a transition that failed; the node is unconfigured then."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Publish the last words and free everything, before the node is destroyed."""
        self._release()

    def _release(self) -> None:
        listener, self._listener, self._listening = self._listener, None, False
        if listener is not None:
            close_quietly(listener, self.get_logger().error)
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)

    def _make_publisher(self, message_type: Any, topic: str, qos: QoSProfile) -> Any:
        publisher = self.create_lifecycle_publisher(
            message_type, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
        self._entities.append((self.destroy_lifecycle_publisher, publisher))
        return publisher

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        ours = {parameter.name: parameter.value for parameter in parameters if parameter.name in ABOUT}
        if ours and self._listener is not None:
            reason = f"{', '.join(ours)} cannot change while the node is configured; clean it up first"
            return SetParametersResult(successful=False, reason=reason)
        try:
            settings_from_values(ours)
        except EdgeAsrError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _hear(self, message: Any) -> None:
        if (listener := self._listener) is not None:
            listener.hear(message)

    def _publish(self, output: Output) -> None:
        """Publish what was heard; called in the recognition thread."""
        if output.speech is not None:
            message = LiveSpeech()
            message.header.stamp = self.get_clock().now().to_msg()
            message.header.frame_id = self._settings.frame_id
            output.speech.fill(message, self._settings.locale)
            self._speech.publish(message)
        (self._partials if output.is_partial else self._events).publish(String(data=output.line))

    def _publish_diagnostics(self) -> None:
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK,
            name=f"{self.get_name()}: speech recognition",
            message="not configured",
            hardware_id="edge-asr",
        )
        if (listener := self._listener) is not None:
            report = listener.report()
            status.level, status.message = _LEVELS[report.level], report.message
            status.values = [KeyValue(key=key, value=value) for key, value in report.values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _deactivate_if_ended(self) -> None:
        listener = self._listener
        if self._listening and listener is not None and listener.has_ended():
            self.get_logger().error(f"listening ended: {listener.report().message}")
            self.trigger_deactivate()


def _find_message_type(settings: Settings) -> Any:
    """Return the class of the audio messages, which two packages of one name define."""
    try:
        return getattr(importlib.import_module("audio_common_msgs.msg"), settings.audio_type)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"audio_type is {settings.audio_type}, which cannot be had here ({error}); build the "
            "audio_common_msgs that defines it into your workspace, or set audio_type or source"
        ) from error


def main(args: list[str] | None = None) -> None:
    """Run the node until Ctrl-C or SIGTERM, and then publish the last words."""
    # ROS's own handlers would close the connection before the last words are published.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        node = EdgeAsrNode()
    except ParameterException as error:
        rclpy.shutdown()
        sys.exit(f"edge_asr_node: {error}")
    executor = MultiThreadedExecutor(num_threads=2)
    executor.add_node(node)
    try:
        executor.spin()
    except KeyboardInterrupt:
        pass
    finally:
        executor.shutdown(timeout_sec=20.0)
        node.close()
        node.destroy_node()
        rclpy.shutdown()
