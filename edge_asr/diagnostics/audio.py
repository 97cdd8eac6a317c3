"""Checks PortAudio, and the devices that can record.

What this file does not do: open a device (`edge-asr listen` does).
"""

from __future__ import annotations

from edge_asr.diagnostics.check import Check, first_line
from edge_asr.diagnostics.probe import run_probe

PROBE = """
import json
import sounddevice
devices = [d["name"] for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
print(json.dumps({"version": sounddevice.get_portaudio_version()[1], "inputs": devices}))
"""


def check_microphone() -> list[Check]:
    """Check PortAudio, and the devices that can record."""
    name = "microphone"
    result, error = run_probe(PROBE)
    if result is None and "PortAudio library not found" in error:
        fix = "sudo apt-get install libportaudio2"
        return [Check(name=name, status="missing", detail=first_line(error), fix=fix)]
    if result is None:
        fix = "pip install --force-reinstall sounddevice"
        return [Check(name=name, status="broken", detail=first_line(error), fix=fix)]
    if not result["inputs"]:
        return [
            Check(
                name=name,
                status="missing",
                detail=f"{result['version']}, no device to record from",
                fix="plug one in and look for it with `arecord -l`; a container needs --device /dev/snd",
            )
        ]
    return [Check(name=name, status="ok", detail=f"{result['version']}: {', '.join(result['inputs'])}")]
