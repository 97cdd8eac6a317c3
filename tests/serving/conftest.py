"""A real server on a free port in the process of the tests, with tiny-en, and what it should hear."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests
sys.path.insert(0, str(Path(__file__).parents[1]))  # for pypi

from serving_clients import MakeServer, Running, comparable, is_near

from edge_asr.audio import read_audio
from edge_asr.runtime import FileSource, Final, LiveRecognizer, Recognizer
from edge_asr.serving.access import Access
from edge_asr.serving.http_face import HttpFace
from edge_asr.serving.journal import Journal
from edge_asr.serving.limits import Limits
from edge_asr.serving.metrics import Metrics
from edge_asr.serving.run import Face, run_server
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.tls import TlsFiles


@pytest.fixture(scope="session")
def recognizer() -> Iterator[Recognizer]:
    with Recognizer.load("tiny-en", num_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def speech(sample_path: Path) -> npt.NDArray[np.int16]:
    """The sample as a client sends it: 7.8 s at 16 kHz."""
    samples: npt.NDArray[np.int16] = (read_audio(sample_path) * 32767).astype(np.int16)
    return samples


@pytest.fixture(scope="session")
def finals(recognizer: Recognizer, speech: npt.NDArray[np.int16]) -> list[tuple[Any, ...]]:
    """What live recognition hears in `speech`, without a server."""
    source = FileSource(speech, sample_rate=16_000, pace=0)
    with LiveRecognizer(recognizer, source) as live:
        found = [event.to_dict() for event in live if isinstance(event, Final)]
    said = ["enter seven two five", "start recording", "go three meters and stop"]
    assert all(is_near(final["text"], text) for final, text in zip(found, said, strict=True))
    return [comparable(final) for final in found]


@pytest.fixture(scope="session")
def make_server(recognizer: Recognizer) -> MakeServer:
    """`with make_server(access=..., tls=..., grace_s=..., port=..., make_face=..., **limits) as running:`."""

    @contextmanager
    def make(
        *,
        access: Access | None = None,
        tls: TlsFiles | None = None,
        grace_s: float = 10.0,
        port: int = 0,
        make_face: Callable[[Sessions], Face] | None = None,
        **limits: Any,
    ) -> Iterator[Running]:
        started = threading.Event()
        found: list[Running] = []
        failure: list[BaseException] = []

        async def serve() -> None:
            metrics, stop = Metrics(), asyncio.Event()
            core = Sessions(recognizer, name="tiny-en", limits=Limits(**limits), observer=Journal(metrics))
            face: Face
            if make_face is not None:
                face = make_face(core)
            else:
                face = HttpFace(
                    core, host="127.0.0.1", port=port, access=access or Access(), metrics=metrics, tls=tls
                )
            loop = asyncio.get_running_loop()

            def on_ready(addresses: list[str]) -> None:
                found.append(Running(addresses[0], core, lambda: loop.call_soon_threadsafe(stop.set)))
                started.set()

            is_clean = await run_server(core, [face], grace_s=grace_s, on_ready=on_ready, stop=stop)
            found[0].is_clean = is_clean

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
                failure.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=run, name="test-server")
        thread.start()
        started.wait(30)
        if failure:
            raise failure[0]
        try:
            yield found[0]
        finally:
            if thread.is_alive():
                found[0].stop()
            thread.join(30)
        assert not thread.is_alive()
        assert not failure, failure

    return make


@pytest.fixture(scope="module")
def server(make_server: MakeServer) -> Iterator[Running]:
    """One server with the default limits for the tests of a file."""
    with make_server() as running:
        yield running
