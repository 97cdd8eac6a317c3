"""--digits of transcribe and listen."""

from __future__ import annotations

import json
from pathlib import Path


def test_the_command_line_writes_digits_if_asked(run, sample_path: Path) -> None:
    said = "enter seven two five start recording go three meters and stop"
    assert run("transcribe", sample_path).stdout == said + "\n"
    result = run("transcribe", sample_path, "--digits", "--json")
    (entry,) = json.loads(result.stdout)["transcripts"]
    assert entry["text"] == "enter 725 start recording go 3 m and stop"
    times = {word["text"]: (word["start_s"], word["end_s"]) for word in entry["words"]}
    assert 0.5 < times["725"][1] - times["725"][0] < 2.5
    assert entry["segments"][0]["text"].startswith("enter 725")
    heard = run("listen", "--simulate", sample_path, "--digits", "--json")
    events = [json.loads(line) for line in heard.stdout.splitlines()]
    texts = [event["text"] for event in events if event["type"] == "final"]
    assert " ".join(texts) == "enter 725 start recording go 3 m and stop"
