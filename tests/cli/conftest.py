"""What the tests of commands share: a runner that calls them as the script does, and sounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from edge_asr.cli.main import cli

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """`run("transcribe", path, ..., input=bytes)`: the result has exit_code, stdout and stderr."""

    def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, [str(a) for a in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder with a.wav (2 s, 16 kHz), sub/b.flac (1.5 s, 44.1 kHz stereo) and notes.txt."""
    folder = tmp_path / "sounds"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(1)
    soundfile.write(folder / "a.wav", rng.normal(0, 0.1, 32_000), 16_000)
    soundfile.write(folder / "sub" / "b.flac", rng.normal(0, 0.1, (66_150, 2)), 44_100)
    (folder / "notes.txt").write_text("no sound")
    return folder
