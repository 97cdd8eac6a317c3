"""`edge-asr listen --grammar` through a real microphone path: three commands, two sentences that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from listen_program import Program
from virtual_microphone import VirtualMicrophone

import edge_asr
from edge_asr.audio import read_audio

pytestmark = [pytest.mark.mic, pytest.mark.slow]

SPEECH = Path(edge_asr.__file__).parent / "models/calibration/audio"
RATE, PAUSE_S = 16_000, 1.5
GRAMMAR = """
turn (left|right) {angle 0..360} degrees
set a timer for {minutes 1..60} minutes
open the gripper [and lower the arm by {distance 0..50} millimeters]
stop
"""
#: Synthesized clips of the package, and the slot that each must give; None is no command.
SAID = (
    ("c29-04", "turn left ninety degrees", ("angle", 90)),
    ("c29-07", "what is the temperature in the cold room", None),
    ("c29-06", "open the gripper and lower the arm by twelve millimeters", ("distance", 12)),
    ("c29-09", "skip this song and play something quiet", None),
    ("c29-10", "set a timer for seventeen minutes", ("minutes", 17)),
)


def test_commands_are_finals_and_the_rest_is_unmatched(
    virtual_microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    grammar, played = tmp_path / "robot.txt", tmp_path / "played.wav"
    grammar.write_text(GRAMMAR)
    pause = np.zeros(round(PAUSE_S * RATE), np.float32)
    clips = [part for name, *_ in SAID for part in (read_audio(SPEECH / f"{name}.opus"), pause)]
    soundfile.write(played, np.concatenate([pause, *clips]), RATE)
    program = Program(virtual_microphone, "--grammar", str(grammar), "--json")
    program.wait_for("listening")
    virtual_microphone.play(played)
    program.wait_for('"id": 4, "text": "set a timer')
    code, lines, messages = program.interrupt()
    assert code == 130, messages
    events = [json.loads(line) for line in lines]
    ended = [event for event in events if event["type"] in ("final", "unmatched")]
    assert [event["id"] for event in ended] == [0, 1, 2, 3, 4]
    for event, (_, text, slot) in zip(ended, SAID, strict=True):
        if slot is None:
            assert (event["type"], event["matched"]) == ("unmatched", False)
            assert event["heard"]
        else:
            assert (event["type"], event["text"], event["matched"]) == ("final", text, True)
            (found,) = event["slots"]
            assert (found["name"], found["number"]) == slot
            assert event["start_s"] < found["start_s"] < found["end_s"] <= event["end_s"]
