"""scripts/ and .ci/run: what they say and do when something is missing, with programs replaced.

The scripts' real work is done by whoever runs the tests: scripts/test made this environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of the scripts and of what they read."""
    shutil.copytree(repository / "scripts", tmp_path / "tree" / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """First folder of the PATH: what is written there replaces real programs."""
    folder = tmp_path / "programs"
    folder.mkdir()
    return folder


def write_program(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def bash(
    tree: Path, code: str, programs: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = f"{programs}:{os.environ['PATH']}" if programs else os.environ["PATH"]
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source scripts/environment.sh; {code}"],
        cwd=tree,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "name", ["scripts/demo", "scripts/test", "scripts/test_integrations", "scripts/check", ".ci/run"]
)
def test_scripts_are_executable_bash_that_stops_at_errors(repository: Path, name: str) -> None:
    text = (repository / name).read_text()
    assert os.access(repository / name, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", repository / name], check=True)


def test_ci_runs_the_command_of_the_readme(repository: Path) -> None:
    assert (repository / ".ci" / "run").read_text().splitlines()[-1] == "exec scripts/test"
    assert "scripts/test" in (repository / "README.md").read_text()


def test_packages_are_named_in_one_sentence_without_root(tree: Path, programs: Path) -> None:
    write_program(programs, "id", "echo 1000")
    write_program(programs, "sudo", "exit 1")
    done = bash(tree, "install_packages pulseaudio libportaudio2", programs)
    assert done.returncode == 1
    assert done.stderr == (
        "Debian packages are missing; install them with: sudo apt-get install pulseaudio libportaudio2\n"
    )


def test_packages_are_installed_by_password_less_sudo(tree: Path, programs: Path) -> None:
    write_program(programs, "id", "echo 1000")
    write_program(programs, "sudo", 'shift; [ "$1" = true ] || exec "$@"')
    write_program(programs, "apt-get", f'echo "$@" >> {programs}/log')
    assert bash(tree, "install_packages pulseaudio", programs).returncode == 0
    assert (programs / "log").read_text().splitlines() == [
        "-qq update",
        "-qq install -y --no-install-recommends pulseaudio",
    ]


def test_a_failing_apt_get_is_shown(tree: Path, programs: Path) -> None:
    write_program(programs, "id", "echo 0")
    write_program(programs, "apt-get", "echo no network; exit 100")
    done = bash(tree, "install_packages pulseaudio", programs)
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert done.stderr.endswith("apt-get failed (see above); install by hand: pulseaudio\n")


def test_no_python_is_one_sentence(tree: Path, programs: Path) -> None:
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13"):
        write_program(programs, name, "exit 1")
    done = bash(tree, "find_python", programs)
    assert done.returncode == 1
    assert (
        done.stderr == "error: no Python of 3.10 or later was found; install one, or set PYTHON to its path\n"
    )


def test_the_environment_is_installed_again_only_when_its_files_change(tree: Path, tmp_path: Path) -> None:
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    write_program(binaries, "python", f'case "$*" in *install*) echo "$@" >> {tmp_path}/log ;; esac')
    code = f"install_edge_asr {tmp_path}/venv cpu"

    def n_installs() -> int:
        assert bash(tree, code).returncode == 0
        return len((tmp_path / "log").read_text().splitlines())

    assert [n_installs(), n_installs()] == [1, 1]
    assert "-c constraints.txt -e .[cpu]" in (tmp_path / "log").read_text()
    (tree / "constraints.txt").write_text("torch==9\n")
    assert [n_installs(), n_installs()] == [2, 2]
    write_program(binaries, "python", 'case "$*" in *install*) exit 1 ;; esac')
    (tree / "constraints.txt").write_text("torch==10\n")
    assert [bash(tree, code).returncode for _ in range(2)] == [1, 1]  # a failure leaves no stamp


def test_integrations_are_named_before_any_work(tree: Path) -> None:
    done = subprocess.run(
        ["scripts/test_integrations", "pipecat", "twilio"], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "error: there is no integration twilio; name pipecat, livekit or ray\n"


def test_demo_refuses_what_it_does_not_know_before_any_work(tree: Path) -> None:
    for argument, message in (
        ("--exprot", "unknown option --exprot"),
        ("none.wav", "no such file: none.wav"),
    ):
        done = subprocess.run(["scripts/demo", argument], cwd=tree, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {message}")
        assert not (tree / ".venv-demo").exists()
    usage = subprocess.run(["scripts/demo", "--help"], cwd=tree, capture_output=True, text=True, check=True)
    assert "scripts/demo [--no-export] [FILE]" in usage.stdout
