"""The core: live sessions and transcriptions of recordings over one loaded model, for asyncio, without a
protocol.

This is the seam. A face (a protocol at a place where it listens) needs these calls, all in one event loop:

    with core.place() as place:                     # one client; RefusedError "busy" or "draining"
        session = await place.open(options)         # EdgeAsrError: the options cannot be met
        await session.push(samples)                 # float or int16, [n] or [n, channels]
        session.end()                               # no more sound; the finals of what was heard follow
        reason = await session.deliver(send)        # `await send(event)` for each event
    # leaving the block ends what is left of the session, without waiting for it

    with core.request() as request:                 # one recording; RefusedError likewise
        transcript = await core.transcribe(file, options)

`push` and `deliver` run side by side, in two tasks. A place may have one session after the other, such as for
push-to-talk. Events are those of the runtime (`Partial`, `Final`, `Unmatched`, `Gap`, `Error`), and
`event_to_line` is their JSON. A session ends by itself if it sends nothing (`idle`), lasts too long
(`too_long`), or the server stops (`draining`); then `deliver` still gives the finals and returns that word.
The face decides what becomes of a `RefusedError` in its protocol; limits.py lists the reasons. It reports to
nobody: whoever wants to know passes an `Observer` to the core.

What goes on inside: a session is a `QueueSource` and a `LiveRecognizer`, followed by a thread of a pool with
as many threads as there are places. A place is free again when that thread has ended and the client has left.
What this file does not do: speak a protocol, check who may come (access.py), load the model.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

from edge_asr.errors import EdgeAsrError, RefusedError
from edge_asr.printable import json_line
from edge_asr.runtime import Recognizer, Transcript
from edge_asr.runtime.digits import write_transcript_digits
from edge_asr.runtime.live.events import Event
from edge_asr.serving.limits import Limits
from edge_asr.serving.observer import Observer
from edge_asr.serving.options import DecodingOptions, SessionOptions
from edge_asr.serving.rate_limit import RateLimit
from edge_asr.serving.recognizers import Recognizers
from edge_asr.serving.session import Session as Session
from edge_asr.serving.uploads import open_upload


class Sessions:
    """Opens sessions and transcribes recordings; belongs to the event loop in which it is used.

    Args:
        recognizer: a loaded recognizer, whose decoder is that of clients that ask for none. It stays open.
        name: of the model, as clients know it.
        limits: None for the defaults.
        vad: ask the neural detector of speech too.
        observer: is told what happens.

    Attributes:
        is_draining: whether nobody new is let in.
        rate_limit: faces ask it before each new request from an address, and tell it of wrong tokens.

    Raises:
        BackendError: the streaming graph of the bundle cannot be loaded.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        name: str,
        limits: Limits | None = None,
        vad: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.vad = vad
        self.observer = observer or Observer()
        self.rate_limit = RateLimit(self.limits.max_rate)
        self.is_draining = False
        self.recognizers = Recognizers(recognizer, self.observer.model_ran, self.observer.stepped)
        self._places: set[Place] = set()
        self._n_requests = 0
        self._numbers = itertools.count(1)
        # A place that is being opened needs a thread too, to make its decoder.
        self._threads = ThreadPoolExecutor(self.limits.max_sessions, thread_name_prefix="edge-asr-session")
        self._workers = ThreadPoolExecutor(
            min(self.recognizers.n_places, self.limits.max_requests), thread_name_prefix="edge-asr-file"
        )
        self._is_stopping = threading.Event()

    @property
    def n_sessions(self) -> int:
        """Count the places that are taken."""
        return len(self._places)

    @property
    def n_requests(self) -> int:
        """Count the recordings that are being received, wait or are being transcribed."""
        return self._n_requests

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take the place of a session.

        Raises:
            RefusedError: "busy" or "draining".
        """
        self._admit(self.n_sessions, self.limits.max_sessions, "sessions")
        place = Place(self)
        self._places.add(place)
        try:
            yield place
        finally:
            place.leave()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Take the place of a recording, before its bytes are read.

        Raises:
            RefusedError: "busy" or "draining".
        """
        self._admit(self._n_requests, self.limits.max_requests, "recordings")
        self._n_requests += 1
        try:
            yield
        finally:
            self._n_requests -= 1

    async def transcribe(
        self, file: BinaryIO, options: DecodingOptions, *, digits: bool = False
    ) -> Transcript:
        """Transcribe a recording inside the block of `request`.

        Args:
            file: the bytes of a sound file, at its beginning.
            options: how text is found.
            digits: write English numbers with digits.

        Raises:
            RefusedError: "too_long", "too_large", or "draining" if the server stops meanwhile.
            AudioError: it is no sound, or damaged.
            EdgeAsrError: as `Recognizers.get`.
        """
        is_given_up = threading.Event()

        def work() -> Transcript:
            def check(audio_s: float) -> None:
                if is_given_up.is_set() or self._is_stopping.is_set():
                    raise RefusedError("draining", "the server is stopping; try again later")
                if audio_s > self.limits.max_session_s:
                    raise RefusedError(
                        "too_long",
                        f"the recording is longer than {self.limits.max_session_s:g} s; send it in parts",
                    )

            check(0.0)
            began = time.monotonic()
            recognizer = self.recognizers.get(options, "file")
            with open_upload(file) as sound:
                transcript = recognizer.transcribe_file(sound, progress=check)
            self.observer.transcribed(transcript.duration_s, time.monotonic() - began)
            return write_transcript_digits(transcript) if digits else transcript

        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)
        except asyncio.CancelledError:
            is_given_up.set()
            raise

    async def drain(self, grace_s: float) -> bool:
        """Let nobody new in, end all sessions, and wait until their finals are delivered.

        Args:
            grace_s: the longest wait; after it what is left is cut off.

        Returns:
            Whether everything was delivered.
        """
        self.is_draining = True
        for place in list(self._places):
            place.end("draining")
        until = time.monotonic() + grace_s
        while (is_busy := self._is_busy()) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        self._is_stopping.set()
        for place in list(self._places):
            place.leave()
        return not is_busy

    def close(self) -> None:
        """End the threads without waiting for a session that is still busy. The recognizer stays open."""
        self.is_draining = True
        self._is_stopping.set()
        for place in list(self._places):
            place.leave()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def refuse(self, reason: str, message: str) -> RefusedError:
        """Return the error of a refusal, and tell the observer."""
        self.observer.refused(reason)
        return RefusedError(reason, message, is_counted=True)

    def count(self, error: EdgeAsrError) -> str:
        """Tell the observer of what a client cannot have, unless it knows; return the reason in a word."""
        reason = error.reason if isinstance(error, RefusedError) else "bad_request"
        if not (isinstance(error, RefusedError) and error.is_counted):
            self.observer.refused(reason)
        return reason

    def _admit(self, n_taken: int, n_most: int, what: str) -> None:
        if self.is_draining:
            raise self.refuse("draining", "the server is stopping; try again later")
        if n_taken >= n_most:
            raise self.refuse("busy", f"all {n_most} places for {what} are taken; try again later")

    def _is_busy(self) -> bool:
        """Whether somebody still waits for text; a client that has not begun a session does not."""
        return self._n_requests > 0 or any(place.has_session for place in self._places)

    def _has_left(self, place: Place) -> None:
        self._places.discard(place)


class Place:
    """The place of one client, which may have one session after the other. `Sessions.place` makes it."""

    def __init__(self, core: Sessions) -> None:
        self._core = core
        self._session: Session | None = None
        self._is_left = False
        self._end_reason: str | None = None

    @property
    def has_session(self) -> bool:
        """Whether a session was opened, and the client is still there."""
        return self._session is not None

    async def open(self, options: SessionOptions) -> Session:
        """Begin a session; the one before must have been delivered.

        Raises:
            EdgeAsrError: the options cannot be met.
            RefusedError: "draining".
        """
        core, loop = self._core, asyncio.get_running_loop()
        core._admit(0, 1, "sessions")
        if self._session is not None:
            await self._session.wait_ended()

        def make() -> Session:
            return Session(
                next(core._numbers),
                options,
                recognizers=core.recognizers,
                limits=core.limits,
                observer=core.observer,
                vad=core.vad,
                loop=loop,
            )

        session = await loop.run_in_executor(core._threads, make)
        self._session = session
        session.start(core._threads)
        session.ended.add_done_callback(lambda _: self._check_left())
        if self._end_reason is not None:  # the server began to stop meanwhile
            session.end(self._end_reason)
        return session

    def end(self, reason: str) -> None:
        """End the session, if there is one; its finals are still delivered."""
        self._end_reason = reason
        if self._session is not None:
            self._session.end(reason)

    def leave(self) -> None:
        """The client has left: end the session without delivering, and free the place once that is done."""
        self._is_left = True
        if self._session is not None:
            self._session.end("left")
        self._check_left()

    def _check_left(self) -> None:
        if self._is_left and (self._session is None or self._session.ended.done()):
            self._core._has_left(self)


def event_to_line(event: Event) -> str:
    """Return an event as one line of JSON, as `edge-asr listen --json` prints it."""
    return json_line(event.to_dict())
