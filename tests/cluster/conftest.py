"""Short sounds for the tests of the cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from edge_asr.audio import read_audio

sys.path.insert(0, str(Path(__file__).parent))  # for cluster_fakes

F32Array = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def speech(sample_path: Path) -> F32Array:
    """7.8 s at 16 kHz."""
    return read_audio(sample_path)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory, speech: F32Array) -> Path:
    """A folder of six clips of 0.4 to 4 s, one in a subfolder, one that is no sound, one cut off."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "sub").mkdir()
    for number, seconds in enumerate((0.4, 4.0, 1.2, 2.5, 3.1)):
        soundfile.write(folder / f"{number}.wav", speech[: round(16_000 * seconds)], 16_000)
    soundfile.write(folder / "sub" / "5.flac", speech[16_000:40_000], 16_000)
    (folder / "bad.wav").write_bytes(b"no sound at all")
    whole = (folder / "4.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no sound")
    return folder
