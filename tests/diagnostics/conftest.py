"""Machines that are not here: system files and programs in a folder that stands for /."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from edge_asr.diagnostics.machine import Machine

FakeMachine = Callable[..., Machine]
RELEASE = (
    "# R{}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot"
)


@pytest.fixture
def fake_machine(tmp_path: Path) -> FakeMachine:
    """`fake_machine(files={path: text}, programs={name: shell})`: nothing of this machine shines through."""

    def make(files: dict[str, str] | None = None, programs: dict[str, str] | None = None) -> Machine:
        root, folder = tmp_path / "root", tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        for path, text in (files or {}).items():
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).write_text(text)
        for name, body in (programs or {}).items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        return Machine(root=root, search_path=str(folder))

    return make


@pytest.fixture
def fake_jetson(fake_machine: FakeMachine) -> FakeMachine:
    """A Jetson Orin Nano with JetPack 6.2; `files` and `programs` are added to it, or replace it."""

    def make(
        release: str = "36 (release), REVISION: 4.3",
        files: dict[str, str] | None = None,
        programs: dict[str, str] | None = None,
    ) -> Machine:
        orin = {
            "/etc/nv_tegra_release": RELEASE.format(release),
            "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "/proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        }
        tools = {
            "dpkg-query": "[ $3 = nvidia-jetpack ] && printf 6.2+b77",
            "nvpmodel": '[ $1 = -q ] && printf "NV Power Mode: MAXN_SUPER\\n2\\n"',
            "jetson_clocks": "echo 'must be root' >&2; exit 1",
        }
        return fake_machine({**orin, **(files or {})}, {**tools, **(programs or {})})

    return make


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`installed(name=version)` replaces what is installed."""

    def install(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in known:
                raise metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(metadata, "version", version)

    return install
