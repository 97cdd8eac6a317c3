"""The STAND-IN has no name and no argument that rclpy lacks, and the node uses nothing else.

The list is what the source of github.com/ros2/rclpy has at b488272 (humble, 3.3.15), 85415f7 (jazzy, 7.1.3)
and ba72a01 (rolling, 8.0.0). Where rclpy is installed, the list is compared with it, too.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import ros_standin

#: By module: functions and methods with their arguments; None for values and properties. Methods may be
#: those of a base (Executor, LifecycleNodeMixin, SimpleManagedEntity), values those of an enum in C++. What
#: is given to create_lifecycle_publisher goes to create_publisher. __new__ counts as __init__.
RCLPY: dict[str, dict[str, str | None]] = {
    "rclpy": {
        "init": "args context domain_id signal_handler_options",
        "shutdown": "context uninstall_handlers",
    },
    "rclpy.callback_groups": {"MutuallyExclusiveCallbackGroup.__init__": ""},
    "rclpy.clock": {"Clock.__init__": "clock_type", "Clock.now": "", "ClockType.STEADY_TIME": None},
    "rclpy.exceptions": {
        "ParameterException.__init__": "error_msg parameters",
        "InvalidParameterTypeException.__init__": "desired_parameter expected_type",
        "InvalidParameterValueException.__init__": "parameter value reason",
    },
    "rclpy.executors": {
        "MultiThreadedExecutor.__init__": "num_threads context",
        "MultiThreadedExecutor.add_node": "node",
        "MultiThreadedExecutor.spin": "",
        "MultiThreadedExecutor.shutdown": "timeout_sec",
    },
    "rclpy.impl.rcutils_logger": {"RcutilsLogger.info": "message", "RcutilsLogger.error": "message"},
    "rclpy.lifecycle": {
        "LifecycleNode.__init__": "node_name enable_communication_interface",
        **{
            f"LifecycleNode.on_{name}": "state"
            for name in ("configure", "cleanup", "shutdown", "activate", "deactivate", "error")
        },
        **{
            f"LifecycleNode.trigger_{name}": ""
            for name in ("configure", "cleanup", "shutdown", "activate", "deactivate")
        },
        "LifecycleNode.create_lifecycle_publisher": (
            "msg_type topic qos_profile callback_group event_callbacks qos_overriding_options"
        ),
        "LifecycleNode.destroy_lifecycle_publisher": "publisher",
        "LifecyclePublisher.publish": "msg",
        "LifecyclePublisher.is_activated": None,
        "LifecycleState.label": None,
        "LifecycleState.state_id": None,
        "TransitionCallbackReturn.SUCCESS": None,
        "TransitionCallbackReturn.FAILURE": None,
        "TransitionCallbackReturn.ERROR": None,
    },
    "rclpy.node": {
        "Node.__init__": "node_name",
        "Node.get_name": "",
        "Node.get_logger": "",
        "Node.get_clock": "",
        "Node.declare_parameter": "name value descriptor ignore_override",
        "Node.get_parameter": "name",
        "Node.set_parameters": "parameter_list",
        "Node.describe_parameter": "name",
        "Node.add_on_set_parameters_callback": "callback",
        "Node.create_publisher": (
            "msg_type topic qos_profile callback_group event_callbacks qos_overriding_options publisher_class"
        ),
        "Node.create_subscription": (
            "msg_type topic callback qos_profile callback_group event_callbacks qos_overriding_options raw"
        ),
        "Node.create_timer": "timer_period_sec callback callback_group clock",
        "Node.destroy_publisher": "publisher",
        "Node.destroy_subscription": "subscription",
        "Node.destroy_node": "",
    },
    "rclpy.parameter": {
        "Parameter.__init__": "name type_ value",
        "Parameter.name": None,
        "Parameter.value": None,
    },
    "rclpy.publisher": {"Publisher.publish": "msg"},
    "rclpy.qos": {
        "QoSProfile.__init__": (
            "history depth reliability durability lifespan deadline liveliness liveliness_lease_duration "
            "avoid_ros_namespace_conventions"
        ),
        "QoSProfile.depth": None,
        "QoSProfile.reliability": None,
        "ReliabilityPolicy.RELIABLE": None,
        "ReliabilityPolicy.BEST_EFFORT": None,
    },
    "rclpy.qos_overriding_options": {"QoSOverridingOptions.with_default_policies": "callback entity_id"},
    "rclpy.signals": {"SignalHandlerOptions.NO": None},
    "rclpy.time": {"Time.to_msg": ""},
}

#: What a user of rclpy cannot make, so its arguments do not matter: `create_publisher` and `now` make them.
INTERNAL = {"Publisher.__init__", "LifecyclePublisher.__init__", "Time.__init__"}


def members(value: Any) -> dict[str, str | None]:
    """The public names of a function or class of the stand-in, in the form of the list."""
    if inspect.isfunction(value):
        return {value.__name__: " ".join(inspect.signature(value).parameters)}
    is_ours = not issubclass(value, enum.Enum | tuple)  # those have a constructor that Python makes
    found: dict[str, str | None] = {}
    for name, member in vars(value).items():
        is_constructor = name in ("__init__", "__new__") and is_ours
        if name.startswith("_") and not is_constructor:
            continue
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        arguments = list(inspect.signature(function).parameters)[1:] if inspect.isfunction(function) else None
        key = f"{value.__name__}.{'__init__' if is_constructor else name}"
        found[key] = None if arguments is None else " ".join(arguments)
    return found


@pytest.mark.parametrize("module", ros_standin.MODULES)
def test_the_standin_has_nothing_that_rclpy_lacks(module: str) -> None:
    for value in ros_standin.MODULES[module]:
        for name, arguments in members(value).items():
            if name in INTERNAL:
                continue
            assert name in RCLPY[module], f"{module}.{name} is not in the list"
            known = RCLPY[module][name]
            assert (arguments is None) == (known is None), name
            assert set((arguments or "").split()) <= set((known or "").split()), name


def test_the_list_is_what_rclpy_has() -> None:
    pytest.importorskip(
        "rclpy", reason="rclpy is on neither PyPI nor Debian; this runs where ROS 2 is installed"
    )
    for module, names in RCLPY.items():
        for name, arguments in names.items():
            value: Any = importlib.import_module(module)
            for part in name.split("."):
                value = getattr(value, part)
            if arguments and not name.endswith(("__init__", "create_lifecycle_publisher")):
                assert set(arguments.split()) <= set(inspect.signature(value).parameters), name


def test_the_node_uses_only_what_is_in_the_list(ros_package: Path) -> None:
    tree = ast.parse((ros_package / "edge_asr_ros" / "node.py").read_text())
    (node,) = [one for one in tree.body if isinstance(one, ast.ClassDef)]
    walked = list(ast.walk(node))
    own = {one.name for one in walked if isinstance(one, ast.FunctionDef)}
    uses = [
        one
        for one in walked
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"
    ]
    own |= {one.attr for one in uses if isinstance(one.ctx, ast.Store)}
    inherited = {
        name.partition(".")[2] for module in ("rclpy.node", "rclpy.lifecycle") for name in RCLPY[module]
    }
    assert {one.attr for one in uses} - own <= inherited
    for one in ast.walk(tree):
        if isinstance(one, ast.ImportFrom) and (one.module or "").startswith("rclpy"):
            known = {name.partition(".")[0] for name in RCLPY[one.module or ""]}
            assert {alias.name for alias in one.names} <= known
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "rclpy":
            assert one.attr in RCLPY["rclpy"]
