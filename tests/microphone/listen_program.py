"""`edge-asr listen` as a program that hears a virtual microphone, for tests that watch and interrupt it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

from virtual_microphone import VirtualMicrophone


class Program:
    """A running `edge-asr listen`, its stderr watched line by line."""

    def __init__(self, microphone: VirtualMicrophone, *arguments: str, model: str = "tiny-en") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge_asr", "listen", "-m", model, *arguments],
            env=microphone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background ignores Ctrl-C, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []
        self.messages = ""
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_messages, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, words: str, timeout_s: float = 60.0) -> None:
        """Until `words` stand on stderr, or on stdout in a line."""
        with self._changed:
            seen = self._changed.wait_for(lambda: words in self.messages + "".join(self.lines), timeout_s)
        assert seen, f"{words!r} did not appear in {timeout_s} s; stderr: {self.messages}"

    def interrupt(self) -> tuple[int, list[str], str]:
        """Press Ctrl-C; exit code, lines of stdout, stderr."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> tuple[int, list[str], str]:
        """Until the program ends by itself."""
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code, self.lines, self.messages

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def _read_messages(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.messages += line
                self._changed.notify_all()
