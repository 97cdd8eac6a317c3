"""The ament package of the ROS 2 example: metadata, files, entry point, parameters and launch file."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import setuptools
import yaml
from edge_asr_ros.settings import defaults, settings_from_values
from ros_standin import install

import edge_asr


@pytest.fixture(scope="module")
def setup_arguments(ros_package: Path) -> dict[str, Any]:
    """What setup.py asks of setuptools."""
    asked: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: asked.update(arguments))
        runpy.run_path(str(ros_package / "setup.py"))
    return asked


def test_package_xml_follows_the_format(ros_package: Path, setup_arguments: dict[str, Any]) -> None:
    package = pytest.importorskip("catkin_pkg.package")
    manifest = package.parse_package(str(ros_package))  # checks it by REP 149, and raises
    warnings: list[str] = []
    manifest.validate(warnings=warnings)
    assert not warnings
    assert manifest.package_format == 3
    assert manifest.name == ros_package.name == setup_arguments["name"]
    assert manifest.version == setup_arguments["version"] == edge_asr.__version__
    assert manifest.licenses == [setup_arguments["license"]]
    assert [one.content for one in manifest.exports if one.tagname == "build_type"] == ["ament_python"]


def test_every_ros_package_that_is_imported_is_a_dependency(ros_package: Path) -> None:
    files = [*(ros_package / "edge_asr_ros").glob("*.py"), *(ros_package / "launch").glob("*.py")]
    imported = set()
    for file in files:
        for one in ast.walk(ast.parse(file.read_text())):
            if isinstance(one, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in one.names}
            elif isinstance(one, ast.ImportFrom):
                imported.add((one.module or "").partition(".")[0])
    declared = set(re.findall(r"<exec_depend>(\w+)</exec_depend>", (ros_package / "package.xml").read_text()))
    ours = {"edge_asr", "edge_asr_ros", "numpy"}  # numpy comes with edge-asr
    assert imported - set(sys.stdlib_module_names) - ours == declared


def test_setup_installs_every_file_where_ament_looks(
    ros_package: Path, setup_arguments: dict[str, Any]
) -> None:
    placed = {file: folder for folder, files in setup_arguments["data_files"] for file in files}
    name = ros_package.name
    assert placed[f"resource/{name}"] == "share/ament_index/resource_index/packages"
    assert placed["package.xml"] == f"share/{name}"
    assert (ros_package / "resource" / name).read_bytes() == b""
    for folder in ("config", "launch"):
        there = {f"{folder}/{path.name}" for path in (ros_package / folder).iterdir() if path.is_file()}
        assert there == {file for file in placed if file.startswith(folder)}
    assert setup_arguments["packages"] == [name]
    scripts = f"$base/lib/{name}"  # where `ros2 run` looks
    text = (ros_package / "setup.cfg").read_text()
    assert re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE) == [
        ("script_dir", scripts),
        ("install_scripts", scripts),
    ]


def test_colcon_builds_it(ros_package: Path, tmp_path: Path) -> None:
    if (colcon := shutil.which("colcon")) is None:
        pytest.skip("colcon is not installed; `pip install colcon-ros` brings it, with plugins for pytest")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ros_package, tmp_path / "src" / ros_package.name, ignore=ignored)
    environment = {**os.environ, "COLCON_HOME": str(tmp_path / "home")}
    command = [colcon, "build"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "install" / ros_package.name
    assert (installed / "share/ament_index/resource_index/packages" / ros_package.name).is_file()
    assert (installed / "share" / ros_package.name / "launch" / "edge_asr.launch.py").is_file()
    assert os.access(installed / "lib" / ros_package.name / "edge_asr_node", os.X_OK)


def test_the_entry_point_leads_to_main(
    setup_arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    (script,) = setup_arguments["entry_points"]["console_scripts"]
    name, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()  # type: ignore[union-attr]
    assert name == "edge_asr_node"
    assert callable(getattr(importlib.import_module(module), function))


def test_the_configuration_holds_every_parameter_at_its_default(ros_package: Path) -> None:
    content = yaml.safe_load((ros_package / "config" / "edge_asr.yaml").read_text())
    assert content == {"/**": {"ros__parameters": defaults()}}
    settings_from_values(content["/**"]["ros__parameters"])


def test_links_of_the_readme_lead_to_files(ros_package: Path) -> None:
    page = ros_package.parent / "README.md"
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in link]
    assert links
    assert all((page.parent / link).is_file() for link in links)


#: The names and arguments that the launch file uses, read in github.com/ros2/launch at f31c1ff (humble) and
#: 02595ba (rolling), and in github.com/ros2/launch_ros at 25a207c and f9ab937.
LAUNCH = {
    "launch": {"LaunchDescription": "initial_entities"},
    "launch.actions": {
        "DeclareLaunchArgument": "name default_value description choices",
        "EmitEvent": "event",
        "RegisterEventHandler": "event_handler",
    },
    "launch.events": {"matches_action": "target_action"},
    "launch.substitutions": {
        "LaunchConfiguration": "variable_name default",
        "PathJoinSubstitution": "substitutions",
    },
    "launch_ros": {},
    "launch_ros.actions": {"LifecycleNode": "name namespace package executable parameters remappings output"},
    "launch_ros.event_handlers": {
        "OnStateTransition": "entities target_lifecycle_node transition start_state goal_state matcher"
    },
    "launch_ros.events": {},
    "launch_ros.events.lifecycle": {"ChangeState": "lifecycle_node_matcher transition_id"},
    "launch_ros.substitutions": {"FindPackageShare": "package"},
}


def make_recorder(name: str, known: list[str]) -> Any:
    """A stand-in for a class of launch, which keeps its arguments and refuses unknown ones."""

    class Recorder:
        def __init__(self, *values: Any, **keywords: Any) -> None:
            self.given = dict(zip(known, values, strict=False)) | keywords
            assert set(self.given) <= set(known), f"{name} has no {set(self.given) - set(known)}"

    Recorder.__name__ = name
    return Recorder


def test_the_launch_file_configures_and_then_activates(
    ros_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {
        name: {one: make_recorder(one, known.split()) for one, known in names.items()}
        for name, names in LAUNCH.items()
    }
    transitions = type("Transition", (), {"TRANSITION_CONFIGURE": 1, "TRANSITION_ACTIVATE": 3})
    modules |= {"lifecycle_msgs": {}, "lifecycle_msgs.msg": {"Transition": transitions}}
    for name, contents in modules.items():
        module = ModuleType(name, "A stand-in for tests.")
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    launch = runpy.run_path(str(ros_package / "launch" / "edge_asr.launch.py"))
    entities = launch["generate_launch_description"]().given["initial_entities"]
    kinds = [type(one).__name__ for one in entities]
    assert kinds == ["DeclareLaunchArgument"] * 2 + ["RegisterEventHandler", "LifecycleNode", "EmitEvent"]
    names = [one.given["name"] for one in entities[:2]]
    assert names == ["namespace", "params_file"]
    parts = entities[1].given["default_value"].given["substitutions"]
    assert (ros_package / Path(*parts[1:])).is_file()
    node = entities[3]
    assert (node.given["package"], node.given["executable"]) == (ros_package.name, "edge_asr_node")
    reached = entities[2].given["event_handler"].given
    assert reached["target_lifecycle_node"] is node
    assert (reached["start_state"], reached["goal_state"]) == ("configuring", "inactive")
    changes = [entities[4], *reached["entities"]]
    for change, transition in zip(changes, (1, 3), strict=True):
        assert change.given["event"].given["transition_id"] == transition
        assert change.given["event"].given["lifecycle_node_matcher"].given["target_action"] is node
