#!/usr/bin/env python3
"""Makes the pictures of the captions page in docs/images: a desktop in light, a phone in dark.

The page hears embedded speech from the microphone of a headless Chromium. The connection is cut meanwhile, so
that the pictures show a gap as it is. The font is Inter where that is installed (Debian: fonts-inter).
What this file does not do: check anything; that is tests/serving/test_captions.py.

    python scripts/screenshots.py [FOLDER]
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from chromium import Chromium, Page, find_chromium

from edge_asr.audio import read_audio

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = REPOSITORY / "edge_asr" / "models"
BEFORE = ("samples/robot_commands.flac",)
AFTER = ("calibration/audio/c29-17.opus", "calibration/audio/c29-07.opus", "calibration/audio/c29-51.opus")
N_FINALS_BEFORE, N_FINALS = 3, 5
RATE = 16_000
CUT_S = 13.0
MAX_BYTES = 150_000


def write_speech(path: Path) -> None:
    """Write clips with pauses, a long one where the connection is cut, over faint noise."""
    parts = [np.zeros(RATE // 2, np.float32)]
    for name in (*BEFORE, *AFTER):
        parts += [read_audio(MODELS / name), np.zeros(RATE, np.float32)]
        if name == BEFORE[-1]:
            parts.append(np.zeros(round(CUT_S * RATE), np.float32))
    samples = np.concatenate(parts)
    samples += np.random.default_rng(0).normal(0, 3e-4, len(samples)).astype(np.float32)
    soundfile.write(path, soxr.resample(samples, RATE, 48_000), 48_000, subtype="PCM_16")


@contextlib.contextmanager
def serving(port: int) -> Iterator[None]:
    """Run `edge-asr serve` until the block ends."""
    command = [sys.executable, "-m", "edge_asr", "serve", "--http", str(port), "--decoder", "beam"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(30)


def take(page: Page, port: int, path: Path) -> None:
    """Listen to the speech and take one picture."""
    finals = "document.querySelectorAll('#log .final').length >= {}"
    with serving(port):
        page.open(f"http://127.0.0.1:{port}/")
        page.value("document.getElementById('digits').checked = true")
        page.click("#toggle")
        page.until(finals.format(N_FINALS_BEFORE))
        page.value("maxWaitingS = 2; retryMs = 8000; socket.close()")
        page.until(finals.format(N_FINALS))
        page.until("document.querySelector('#partial p').textContent.length > 20")
        page.screenshot(path)
        page.click("#toggle")
    print(f"{path}: {path.stat().st_size} bytes")
    if path.stat().st_size > MAX_BYTES:
        sys.exit(f"{path} has more than {MAX_BYTES} bytes; show less")


def main(folder: str = str(REPOSITORY / "docs" / "images")) -> None:
    program = find_chromium()
    if program is None:
        sys.exit("there is no Chromium; install it with: apt install chromium")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        write_speech(Path(scratch) / "speech.wav")
        with Chromium(program, Path(scratch) / "speech.wav") as browser, browser.page() as page:
            take(page, port, Path(folder) / "captions-desktop.png")
            page.show(width=390, height=780, scale=2, is_dark=True)
            take(page, port, Path(folder) / "captions-phone.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
