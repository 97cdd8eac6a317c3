"""--digits of transcribe and listen."""

from __future__ import annotations

import json
from pathlib import Path

from edge_asr.runtime.digits import write_digits


def test_the_command_line_writes_digits_if_asked(run, sample_path: Path, sample_text: str) -> None:
    assert run("transcribe", sample_path).stdout == sample_text + "\n"
    result = run("transcribe", sample_path, "--digits", "--json")
    (entry,) = json.loads(result.stdout)["transcripts"]
    assert entry["text"] == write_digits(sample_text)
    assert entry["text"].startswith("enter 725 start")
    times = {word["text"]: (word["start_s"], word["end_s"]) for word in entry["words"]}
    assert 0.5 < times["725"][1] - times["725"][0] < 2.5
    assert entry["segments"][0]["text"].startswith("enter 725")
    heard = run("listen", "--simulate", sample_path, "--digits", "--json")
    events = [json.loads(line) for line in heard.stdout.splitlines()]
    texts = [event["text"] for event in events if event["type"] == "final"]
    assert " ".join(texts).startswith("enter 725 start")
