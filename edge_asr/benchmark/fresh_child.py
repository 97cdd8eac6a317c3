"""Runs in a fresh process: imports, loads, transcribes twice or more, and reports times and memory.

It is a plain user of `Recognizer`: nothing is watched. Run by `fresh_process.py` as
`python -c "from edge_asr.benchmark.fresh_child import main; main()" REQUEST`; it prints one JSON line.
At the top only what Python itself has loaded already, for imports are part of what is measured.
"""

from __future__ import annotations

import sys
import time
from typing import Any

_PYTHON_AT = time.monotonic()


def main() -> None:
    """Do what the request file says and print the answer."""
    import json
    from pathlib import Path

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from edge_asr.errors import EdgeAsrError

    try:
        answer = _run(request)
    except EdgeAsrError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))  # noqa: T201 - standard output is the channel to the parent


def _run(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from edge_asr.runtime.recognizer import Recognizer

    imported_at, imported_rss = time.monotonic(), peak_rss_bytes()
    decoder = None
    if request["decoding"] is not None:
        from edge_asr.runtime.decoding.choice import DecoderOptions

        decoder = DecoderOptions.from_dict(request["decoding"]).factory()
    with Recognizer.load(**request["load"], decoder=decoder) as recognizer:
        loaded_at, loaded_rss = time.monotonic(), peak_rss_bytes()
        clips = list(np.load(request["clips"]))
        audio_at = time.monotonic()
        rate = request["sample_rate"]
        text_at: list[float] = []
        texts: list[list[str]] = []
        for _ in range(request["n_runs"]):
            if len(clips) == 1:
                transcripts = [recognizer.transcribe(clips[0], rate)]
            else:
                transcripts = recognizer.transcribe_batch([(clip, rate) for clip in clips])
            texts.append([transcript.text for transcript in transcripts])
            text_at.append(time.monotonic())
        gpu_bytes, gpu_reason = _gpu_memory(recognizer.backend.name)
        return {
            "at_s": [_PYTHON_AT, imported_at, loaded_at, audio_at, *text_at],
            "texts": texts,
            "rss_bytes": [imported_rss, loaded_rss, peak_rss_bytes()],
            "gpu_bytes": gpu_bytes,
            "gpu_reason": gpu_reason,
        }


def peak_rss_bytes() -> int | None:
    """Return the largest resident set of this process so far; None if /proc does not say.

    Not getrusage: its ru_maxrss is inherited over fork and exec, so that a child begins with its parent's.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _gpu_memory(backend: str) -> tuple[int | None, str | None]:
    if backend == "cpu":
        return None, "backend cpu uses no GPU"
    from edge_asr.benchmark.gpu import process_memory_bytes

    return process_memory_bytes()
