"""The virtual microphone: a private pulseaudio with a null sink, heard through real PortAudio.

It starts a sound server of its own in a temporary folder, with its own ALSA configuration, so
nothing of the machine's sound set-up is used or changed. What is played into the sink comes out of
the default input device. What this file does not do: decide about tests (`conftest`).
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = "pulseaudio pulseaudio-utils libasound2-plugins libportaudio2"

ASOUND = """
pcm.!default { type pulse }
ctl.!default { type pulse }
pcm.pulse { type pulse }
ctl.pulse { type pulse }
"""


class VirtualMicrophone:
    """A running sound server whose default source hears what `play` plays."""

    def __init__(self, folder: Path, rate: int) -> None:
        self.folder = folder
        self.rate = rate
        self.server: subprocess.Popen[bytes] | None = None
        self.socket = folder / "native"
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_SERVER": f"unix:{self.socket}",
            "OMP_NUM_THREADS": "1",
        }

    @contextmanager
    def running(self) -> Iterator[VirtualMicrophone]:
        """The server, until the block ends."""
        (self.folder / ".asoundrc").write_text(ASOUND)
        try:
            self.start()
            yield self
        finally:
            self.kill()
            assert self.server is not None
            self.server.wait(timeout=10)

    def start(self) -> None:
        """Start the server, again if it was killed."""
        arguments = ["--daemonize=no", "--system=false", "--exit-idle-time=-1", "--use-pid-file=no", "-n"]
        modules = [
            f"module-native-protocol-unix socket={self.socket} auth-anonymous=1",
            f"module-null-sink sink_name=mic rate={self.rate} channels=1",
        ]
        loads = [argument for module in modules for argument in ("-L", module)]
        environment = {k: v for k, v in self.environment.items() if k != "PULSE_SERVER"}
        with (self.folder / "log").open("wb") as log:
            self.server = subprocess.Popen(
                ["pulseaudio", *arguments, *loads], env=environment, stdout=log, stderr=log
            )
        self._wait_until_up(self.server)
        self.control("set-default-source", "mic.monitor")

    def play(self, path: Path, *, sink: str = "mic") -> None:
        """Play a sound file at real time; returns when it has been played."""
        subprocess.run(
            ["paplay", f"--device={sink}", "--latency-msec=200", str(path)],
            env=self.environment,
            check=True,
            timeout=600,
            capture_output=True,
        )

    def kill(self) -> None:
        """End the server as a crash would."""
        assert self.server is not None
        self.server.kill()
        self.server.wait(timeout=10)

    def freeze(self) -> None:
        """Stop the server where it is: it answers nobody, and closes nothing."""
        assert self.server is not None
        self.server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self.server is not None
        self.server.send_signal(signal.SIGCONT)

    def unplug(self) -> None:
        """Take the sink and its source away."""
        self.control("unload-module", "module-null-sink")

    def plug(self, rate: int, name: str = "mic") -> None:
        """Put them back, at another rate, or others beside them, and make them the default."""
        self.control("load-module", "module-null-sink", f"sink_name={name}", f"rate={rate}", "channels=1")
        self.control("set-default-source", f"{name}.monitor")

    def _wait_until_up(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and server.poll() is None:
            if self.socket.exists() and self.control("info", check=False) == 0:
                return
            time.sleep(0.05)
        log = (self.folder / "log").read_text()
        raise RuntimeError(f"pulseaudio did not start within 20 s; it said:\n{log}")

    def control(self, *arguments: str, check: bool = True) -> int:
        """Tell the server something with pactl; its exit code."""
        return subprocess.run(
            ["pactl", *arguments], env=self.environment, check=check, capture_output=True, timeout=20
        ).returncode


def missing_tools() -> list[str]:
    """What the virtual microphone needs and this machine lacks."""
    missing = [tool for tool in ("pulseaudio", "pactl", "paplay") if shutil.which(tool) is None]
    if ctypes.util.find_library("portaudio") is None:
        missing.append("the PortAudio library")
    plugin = "alsa-lib/libasound_module_pcm_pulse.so"
    folders = [Path("/usr/lib"), Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu*")]
    if not any((folder / plugin).exists() for folder in folders):
        missing.append("the ALSA plugin for pulse")
    return missing
