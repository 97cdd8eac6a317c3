"""Loads a recognizer that has passed the self-test of its bundle on this machine.

The test runs once for each runtime and bundle. The result is remembered in a small file of the user's cache
folder, so that later starts only look for it. The streaming graph, which only `listen` runs, has a test of
its own (`choose_partials`).
What this file does not do: run the test (self_test.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_asr.atomic import write_file
from edge_asr.bundle.folder import DEFAULT_MODEL
from edge_asr.errors import AudioError, BackendError, BundleError, EdgeAsrError
from edge_asr.runtime.recognizer import Recognizer

if TYPE_CHECKING:
    from edge_asr.bundle.manifest import Precision
    from edge_asr.runtime.live.streaming_decoder import Partials

_log = logging.getLogger(__name__)


def load_tested(
    path_or_name: str | Path = DEFAULT_MODEL,
    *,
    precision: str = "auto",
    backend: str = "auto",
    **options: Any,
) -> Recognizer:
    """Load a recognizer whose execution hears here what the exporter heard, if its bundle can tell.

    The clip is run once for each machine, runtime and bundle. Where the cache folder cannot be written,
    nothing is run: it would be run again each time. If the words differ, and the precision or the backend is
    "auto", another one is taken, with a warning.

    Args:
        path_or_name, precision, backend, options: as `Recognizer.load`.

    Raises:
        BackendError: no execution that was allowed hears the right words.
        EdgeAsrError: as `Recognizer.load`.
    """
    recognizer = Recognizer.load(path_or_name, precision=precision, backend=backend, **options)
    problem = _remembered_problem(recognizer)
    if problem is None:
        return recognizer
    first = recognizer
    recognizer.close()
    for other in _others(first, precision, backend):
        try:
            recognizer = Recognizer.load(path_or_name, precision=other[0], backend=other[1], **options)
        except EdgeAsrError as error:
            _log.info("%s on %s: %s", *other, error)
            continue
        if _remembered_problem(recognizer) is None:
            _log.warning("%s; %s is used instead", problem, recognizer.execution)
            return recognizer
        recognizer.close()
    raise BackendError(
        f"{problem}; choose another --precision or --backend, or use the runtime with which the bundle was "
        f"made (`edge-asr doctor -m {path_or_name}` tests all; --no-self-test runs it anyway)"
    )


def choose_partials(recognizer: Recognizer, partials: Partials) -> Partials:
    """Return "windowed" for "auto" if the streaming graph hears here other words than the exporter did.

    Like `load_tested`, it runs the clip once for each machine, runtime and bundle, and warns.

    Raises:
        BackendError: the words differ, and `partials` is "streaming".
        EdgeAsrError: as `streaming_decoders`.
    """
    from edge_asr.runtime.live.streaming_decoder import streaming_decoders
    from edge_asr.runtime.self_test import has_stream_test

    bundle = recognizer.bundle
    if partials not in ("auto", "streaming") or bundle is None or not has_stream_test(bundle):
        return partials
    if streaming_decoders(recognizer, partials) is None:
        return partials
    problem = _remembered_problem(recognizer, stream=True)
    if problem is None:
        return partials
    if partials == "streaming":
        raise BackendError(
            f"{problem}; choose --partials windowed and --final offline, or use the runtime with which the "
            "bundle was made (--no-self-test runs it anyway)"
        )
    _log.warning("%s; partials are made without it, --partials windowed", problem)
    return "windowed"


def _others(recognizer: Recognizer, precision: str, backend: str) -> Iterator[tuple[str, str]]:
    """Yield what may run in the place of an execution that failed."""
    name, failed = recognizer.backend.name, recognizer.backend.precision
    if precision == "auto" and failed != "fp32":
        yield "fp32", name
    if backend == "auto" and name != "cpu":
        yield precision, "cpu"
        if precision == "auto":
            yield "fp32", "cpu"


def _remembered_problem(recognizer: Recognizer, *, stream: bool = False) -> str | None:
    """Return what is wrong with an execution, from the cache or by a test; None if nothing is."""
    if recognizer.bundle is None or recognizer.bundle.info.self_test is None:
        return None
    record = _record(recognizer, stream)
    if record is None:
        return None
    try:
        return record.read_text(encoding="utf-8") or None
    except (OSError, ValueError):
        pass
    try:
        # Before the test, so that it does not run again and again where nothing can be remembered.
        record.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(record.parent, os.W_OK):
            raise OSError("not writable")
        from edge_asr.runtime.self_test import find_problem

        problem = find_problem(recognizer, stream=stream)
        remember(recognizer, problem, stream=stream)
    except OSError as error:
        _log.info("%s cannot be written (%s); the self-test is not run", record.parent, error)
        return None
    except (BundleError, AudioError) as error:
        _log.info("no self-test: %s", error)
        return None
    return problem or None


def remember(recognizer: Recognizer, problem: str, *, stream: bool = False) -> None:
    """Keep the result of a test for this machine, runtime and bundle; an empty problem is a pass.

    Raises:
        OSError: the cache folder cannot be written.
    """
    record = _record(recognizer, stream)
    if record is not None:
        write_file(record, problem)


def _record(recognizer: Recognizer, stream: bool) -> Path | None:
    """Name the file in which the result of an execution is kept; None without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        folder = os.path.join(home, ".cache")
    return Path(folder, "edge-asr", "self-test", _fingerprint(recognizer, stream))


def _fingerprint(recognizer: Recognizer, stream: bool) -> str:
    """Hash what a result depends on: machine, runtime, precision, backend, bundle."""
    import hashlib

    assert recognizer.bundle is not None
    info = recognizer.bundle.info
    artifact: object = recognizer.bundle.artifact_behind(cast("Precision", recognizer.backend.precision))
    execution = recognizer.execution
    if stream:
        artifact, execution = info.streaming, recognizer.streaming_model().execution
    facts = (execution, _machine(), np.__version__, artifact, info.tokens_sha256, info.self_test)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _machine() -> str:
    """Describe the processor: by the first core of /proc/cpuinfo where there is one."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read(4096).split("\n\n")[0]
    except OSError:
        import platform

        return f"{platform.machine()} {platform.processor()}"
    changing = ("cpu MHz", "bogomips", "BogoMIPS", "apicid", "initial apicid", "core id", "processor")
    return "\n".join(line for line in first.splitlines() if not line.startswith(changing))
