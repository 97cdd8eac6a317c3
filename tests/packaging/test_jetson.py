"""docs/jetson.md and the `[jetson]` extra: the commands exist, and JetPack's Pythons find wheels.

The resolution is pip's own, a dry run for CPython 3.10 and 3.12 on aarch64. It says which wheels a Jetson
would get, not that they work there.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parents[1]))

from pypi import NO_INDEX

from edge_asr.cli.main import COMMANDS, cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def document(repository: Path) -> str:
    return (repository / "docs" / "jetson.md").read_text(encoding="utf-8")


def command_lines(document: str) -> list[str]:
    """Every `edge-asr ...` in a block or between backticks."""
    blocks = re.findall(r"^```\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```\n.*?^```", "", document, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    return [line for line in lines if line.startswith("edge-asr ")]


def test_it_says_first_that_no_jetson_has_run_it(document: str) -> None:
    title, _, banner = document.split("\n", 3)[:3]
    assert title.startswith("# ")
    assert banner.startswith("> **Not yet run on a Jetson.**")


def test_every_command_and_option_exists(document: str) -> None:
    lines = command_lines(document)
    assert len(lines) >= 15
    assert {"doctor", "build", "export", "listen", "transcribe"} <= {shlex.split(line)[1] for line in lines}
    for line in lines:
        words = [word for word in shlex.split(line)[1:] if word != "-v"]
        context = click.Context(cli, info_name="edge-asr")
        command = cli.get_command(context, words[0])
        assert command is not None, f"{line}: no command {words[0]}, there are {list(COMMANDS)}"
        inner = click.Context(command, info_name=words[0], parent=context)
        values, rest, _ = command.make_parser(inner).parse_args(args=words[1:])  # an unknown option raises
        arguments = [p for p in command.params if isinstance(p, click.Argument) and p.required]
        assert len(rest) == 0, line
        if len(words) > 1:  # `edge-asr listen` alone is the name of the command
            assert all(values.get(str(argument.name)) for argument in arguments), line
        for parameter in command.params:
            value = values.get(str(parameter.name))
            if value is not None and isinstance(parameter.type, click.Choice):
                for one in value if isinstance(value, list) else [value]:
                    parameter.type.convert(one, parameter, inner)


def test_a_command_that_does_not_exist_would_be_found(document: str) -> None:
    wrong = document + "\n```\nedge-asr listen --no-such-option\n```\n"
    with pytest.raises(click.NoSuchOption):
        test_every_command_and_option_exists(wrong)


def jetson_requirements(repository: Path, python: str) -> list[str]:
    """What pip would ask for on a Jetson: pip evaluates markers for its own Python, so they are done here."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    machine = {"python_version": python, "platform_machine": "aarch64", "sys_platform": "linux", "extra": ""}
    listed = [*project["dependencies"], *project["optional-dependencies"]["jetson"]]
    wanted = []
    for requirement in map(Requirement, listed):
        if requirement.marker is None or requirement.marker.evaluate(machine):
            requirement.marker = None
            wanted.append(str(requirement))
    return wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "glibc_minor"),
    [("3.10", 35), ("3.12", 39)],
    ids=["JetPack 6", "JetPack 7"],
)
def test_the_jetson_extra_has_wheels(repository: Path, tmp_path: Path, python: str, glibc_minor: int) -> None:
    # Ubuntu 22.04 has glibc 2.35, 24.04 has 2.39; pip wants every tag by name.
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc_minor + 1)] + [
        "manylinux2014_aarch64"
    ]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "-vv",
        "--retries",
        "1",
    ]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--target", str(tmp_path / "target")]
    command += ["--implementation", "cp", "--python-version", python]
    command += [word for tag in tags for word in ("--platform", tag)]
    command += ["--report", str(tmp_path / "report.json"), *jetson_requirements(repository, python)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and NO_INDEX.search(done.stdout + done.stderr):
        pytest.skip("needs a package index, and pip could not reach one")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    found = {item["metadata"]["name"].lower(): item for item in report["install"]}
    versions = {name: Version(item["metadata"]["version"]) for name, item in found.items()}
    assert all(item["download_info"]["url"].endswith(".whl") for item in report["install"])
    assert versions["onnxruntime"] >= Version("1.18")
    if python == "3.10":
        assert versions["onnxruntime"].release[:2] == (1, 23)  # as the document says
    assert {"numpy", "scipy", "soundfile", "soxr", "sounddevice"} <= set(found)
    assert set(found).isdisjoint({"torch", "tensorrt", "onnxruntime-gpu", "cuda-bindings"})


def test_the_power_mode_comes_before_the_engine(document: str) -> None:
    """An engine belongs to a number of multiprocessors, which the mode changes."""
    titles = re.findall(r"^## \d+\. (.*)$", document, re.MULTILINE)
    assert titles.index("Power mode, before you build") + 1 == titles.index("An engine for this device")


def test_the_rows_of_the_table_come_out_of_a_report(repository: Path, document: str, tmp_path: Path) -> None:
    (tmp_path / "jetson.txt").write_text("# R36 (release), REVISION: 4.3\nNV Power Mode: MAXN\n")
    cell = {
        "seconds": 10.0, "batch": 1, "rtfx": 200.0, "memory": {"gpu_bytes": 300_000_000},
        "power": [{"watts": 6.5}], "stages": {"total": {"summary": {"p50": 50.0}}},
    }  # fmt: skip
    for name, ms in (("cpu", 100.0), ("fp16", 50.0)):
        cell["stages"]["total"]["summary"]["p50"] = ms  # type: ignore[index]
        bench = {"model": {"name": "mine"}, "configurations": [{"cells": [cell, {**cell, "batch": 8}]}]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text(json.dumps(bench))
    script = repository / "scripts" / "jetson_rows.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True)
    fp16, int8 = done.stdout.splitlines()
    assert fp16 == "| # R36 (release), REVISION: 4.3 | mine | fp16 |  | 50 | 200 | 300 | 6.5 | 2 |"
    assert int8 == "| # R36 (release), REVISION: 4.3 | mine | int8 |  |  |  |  |  |  |"
    (heading,) = re.findall(r"^\| module, JetPack.*\|$", document, re.MULTILINE)
    assert heading.count("|") == fp16.count("|")


def test_words_of_two_processors_are_compared(repository: Path, tmp_path: Path) -> None:
    record = {"int8": {"a.flac": {"text": "go", "live": "go", "frames": [1, 2, 3]}}}
    (tmp_path / "here.json").write_text(json.dumps(record))
    script = repository / "scripts" / "arm64_words.py"
    command = [
        sys.executable,
        str(script),
        "--compare",
        str(tmp_path / "here.json"),
        str(tmp_path / "there.json"),
    ]
    record["int8"]["a.flac"]["frames"] = [1, 2, 9]
    for live, code in (("go", 0), ("no", 3)):
        record["int8"]["a.flac"]["live"] = live
        (tmp_path / "there.json").write_text(json.dumps(record))
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code
        assert done.stdout.splitlines()[-1] == f"| int8 | 1 of 1 | {1 - code // 3} of 1 | 1 of 3 |"
