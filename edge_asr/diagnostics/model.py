"""Checks that a bundle is whole and hears here what its exporter heard; transcribes a sample.

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

SELF_TEST_PROBE = """
import json, sys
from edge_asr.bundle.folder import Bundle
from edge_asr.errors import EdgeAsrError
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.self_test import has_stream_test, run_self_test
from edge_asr.runtime.tested import remember
bundle = Bundle.load(sys.argv[1], check_hashes=False)
info = bundle.info
tests = [] if info.self_test is None else [(p, "cpu") for p in info.self_test.references] + [("auto", "auto")]
results = {}
for precision, backend in tests:
    name = f"{precision} on {backend}"
    try:
        with Recognizer.load(sys.argv[1], precision=precision, backend=backend) as recognizer:
            for stream in (False, True) if has_stream_test(bundle) else (False,):
                name = f"{precision} stream on {backend}"
                loaded = recognizer.streaming_model() if stream else recognizer
                name = loaded.execution.partition(" (")[0]
                if name in results:
                    continue
                result = run_self_test(recognizer, stream=stream)
                results[name] = [result.passed, str(result)]
                remember(recognizer, "" if result.passed else str(result), stream=stream)
    except EdgeAsrError as error:
        results[name] = [False, str(error)]
    except OSError:
        pass  # nothing can be remembered here
print(json.dumps(results))
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


def check_self_test(model: str | None) -> list[Check]:
    """Run the clip of a bundle with each of its precisions on the CPU, and as "auto" would; streams too.

    This runs in a process of its own, and what it finds is what `transcribe` and `listen` go by.
    """
    try:
        from edge_asr.bundle.folder import DEFAULT_MODEL, resolve_bundle_path

        path = resolve_bundle_path(DEFAULT_MODEL if model is None else model).resolve()
    except (EdgeAsrError, ImportError, OSError):
        return []  # `check_model` has said so
    answer, problem = run_probe(SELF_TEST_PROBE, str(path))
    if answer is None:
        return [Check(name="self-test", status="broken", detail=first_line(problem), fix="fix what is above")]
    if not answer:
        fix = "export the model again, or add one: python -m edge_asr.proof.self_test BUNDLE"
        return [Check(name="self-test", status="missing", detail="the bundle carries none", fix=fix)]
    return [
        Check(
            name=f"self-test {execution}",
            status="ok" if passed else "broken",
            detail=first_line(detail),
            fix="" if passed else "use another precision or backend, or the runtime that made the bundle",
        )
        for execution, (passed, detail) in answer.items()
    ]


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
