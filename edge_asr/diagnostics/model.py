"""Checks that a bundle is whole, and transcribes a sample with the embedded one.

What this file does not do: check engines (engines.py), measure error rates (`edge-asr evaluate`).
"""

from __future__ import annotations

import difflib
import re

from edge_asr.diagnostics.check import Check, first_line
from edge_asr.diagnostics.probe import run_probe
from edge_asr.errors import EdgeAsrError

PROBE = """
import json, sys, time
from edge_asr.runtime.recognizer import Recognizer
with Recognizer.load(sys.argv[1]) as recognizer:
    started = time.perf_counter()
    transcript = recognizer.transcribe_file(sys.argv[2])
    elapsed_s = time.perf_counter() - started
print(json.dumps({"text": transcript.text, "duration_s": transcript.duration_s, "elapsed_s": elapsed_s}))
"""

_MIN_SIMILARITY = 0.8
"""Least similarity of the transcription to the text: broken installs give noise or nothing."""


def check_model(model: str | None) -> list[Check]:
    """Check the embedded model (None) or a named bundle, comparing every artifact with its hash."""
    name = "embedded model" if model is None else "model"
    try:
        from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle

        bundle = Bundle.load(DEFAULT_MODEL if model is None else model)
    except (EdgeAsrError, ImportError, OSError) as error:
        reinstall = "pip install --force-reinstall --no-deps edge-asr"
        return [
            Check(
                name=name,
                status="broken",
                detail=first_line(str(error)),
                fix=reinstall if model is None else "copy the bundle again, or export the model again",
                required=True,
            )
        ]
    files = ", ".join(
        f"{a.file} {a.size_bytes / 1e6:.1f} MB sha256 {a.sha256[:12]}" for a in bundle.info.artifacts
    )
    return [Check(name=name, status="ok", detail=f"{bundle.info.name}: {files}", required=True)]


def check_sample() -> list[Check]:
    """Transcribe the embedded sample with the embedded model, and compare with its text.

    This runs in a process of its own, so a crash of onnxruntime becomes a line here.
    """
    name = "transcription"
    fix = "fix what is above, then run edge-asr doctor again"
    try:
        from edge_asr.bundle.folder import DEFAULT_MODEL, EMBEDDED_MODELS

        sample = EMBEDDED_MODELS / "samples" / "robot_commands.flac"
        expected = sample.with_suffix(".txt").read_text(encoding="utf-8")
        model = EMBEDDED_MODELS / DEFAULT_MODEL / "bundle"
    except (ImportError, OSError) as error:
        return [Check(name=name, status="broken", detail=first_line(str(error)), fix=fix, required=True)]
    answer, problem = run_probe(PROBE, str(model), str(sample))
    if answer is None:
        return [Check(name=name, status="broken", detail=first_line(problem), fix=fix, required=True)]
    text = str(answer["text"])
    heard = f"{text!r}, {answer['duration_s']:.1f} s of audio in {answer['elapsed_s']:.2f} s"
    words = [re.sub(r"[^\w' ]", " ", spoken.lower()).split() for spoken in (expected, text)]
    similarity = difflib.SequenceMatcher(None, " ".join(words[0]), " ".join(words[1]), autojunk=False).ratio()
    if similarity >= _MIN_SIMILARITY:
        return [Check(name=name, status="ok", detail=heard, required=True)]
    return [
        Check(
            name=name,
            status="broken",
            detail=f"heard {heard}; the sample says {' '.join(words[0])!r}",
            fix="pip install --force-reinstall edge-asr; if that does not help, report it with this output",
            required=True,
        )
    ]
