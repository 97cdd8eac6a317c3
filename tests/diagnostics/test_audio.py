"""The microphone line for each answer that PortAudio may give."""

from __future__ import annotations

import pytest

from edge_asr.diagnostics import audio


@pytest.mark.parametrize(
    ("code", "status", "fix"),
    [
        ("raise OSError('PortAudio library not found')", "missing", "sudo apt-get install libportaudio2"),
        ("raise ImportError('bad')", "broken", "pip install --force-reinstall sounddevice"),
        ('print(\'{"version": "V19", "inputs": []}\')', "missing", "arecord -l"),
        ('print(\'{"version": "V19", "inputs": ["USB mic"]}\')', "ok", ""),
    ],
)
def test_microphone(monkeypatch, code: str, status: str, fix: str) -> None:
    monkeypatch.setattr(audio, "PROBE", code)
    (check,) = audio.check_microphone()
    assert check.status == status
    assert fix in check.fix
    assert check.required is False
