"""Cuts the clips of tests/data/golden out of three LibriSpeech utterances.

    cd scripts && python -m golden.make.clips LIBRISPEECH ../tests/data/golden

LIBRISPEECH holds the train-clean-100 folders (https://www.openslr.org/12, CC BY 4.0). Lengths end between
hops, so that a front end's last frame is tested.
"""

from __future__ import annotations

import sys
from pathlib import Path

import soundfile

#: Utterance, and how many samples from its start on.
CLIPS = (("1447-130550-0000", 26_320), ("1624-142933-0000", 28_977), ("1183-124566-0000", 51_999))


def main() -> None:
    """Write audio_0.flac to audio_2.flac."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    for index, (name, n_samples) in enumerate(CLIPS):
        speaker, chapter, _ = name.split("-")
        samples, rate = soundfile.read(source / speaker / chapter / f"{name}.flac", dtype="int16")
        soundfile.write(target / f"audio_{index}.flac", samples[:n_samples], rate, subtype="PCM_16")


if __name__ == "__main__":
    main()
