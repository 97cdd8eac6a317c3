"""The machine as its system files and programs describe it: whether it is a Jetson or has an NVIDIA GPU.

Tests imitate a Jetson by a `Machine` with another root and search path.
What this file does not do: load a driver or a library (cuda.py, tensorrt.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_COMMAND_TIMEOUT_S = 10
_NVIDIA_PCI_VENDOR = "0x10de"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The places of system files and programs.

    Attributes:
        root: folder that stands for /.
        search_path: folders of programs, as in $PATH; None means those of the process, and the two in which
            JetPack keeps its tools.
    """

    root: Path = Path("/")
    search_path: str | None = None

    def read(self, path: str) -> str | None:
        """Read the text of a system file, NUL bytes (device tree) as spaces; None if it cannot be read."""
        try:
            data = (self.root / path.lstrip("/")).read_bytes()
        except OSError:
            return None
        return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()

    def glob(self, pattern: str) -> list[Path]:
        """List files below the root, sorted."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    def run(self, program: str, *arguments: str) -> str | None:
        """Return the standard output of a system program; None if it is missing, fails or hangs."""
        found = shutil.which(program, path=self.search_path)
        if found is None and self.search_path is None:
            found = shutil.which(program, path="/usr/sbin:/usr/bin")
        if found is None:
            return None
        try:
            done = subprocess.run(
                [found, *arguments],
                capture_output=True,
                text=True,
                timeout=_COMMAND_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except (subprocess.TimeoutExpired, OSError):
            return None
        return done.stdout if done.returncode == 0 else None

    @property
    def is_jetson(self) -> bool:
        """Tell whether this is Jetson Linux (release file), or a Tegra (device tree, as in a container)."""
        return (
            self.read("/etc/nv_tegra_release") is not None
            or re.search(r"\bnvidia,tegra", self.read("/proc/device-tree/compatible") or "") is not None
        )

    @property
    def has_nvidia_gpu(self) -> bool:
        """Tell whether there is a Jetson, an NVIDIA display controller on the PCI bus, or a loaded driver."""
        if self.is_jetson or self.read("/proc/driver/nvidia/version") is not None:
            return True
        for vendor in self.glob("/sys/bus/pci/devices/*/vendor"):
            device_class = self.read(str(vendor.with_name("class").relative_to(self.root))) or ""
            # 0x03.... are display controllers; NVIDIA (Mellanox) also makes network cards.
            if (
                self.read(str(vendor.relative_to(self.root))) == _NVIDIA_PCI_VENDOR
                and device_class[:4] == "0x03"
            ):
                return True
        return False
