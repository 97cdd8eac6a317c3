"""Carries the events of a session from its thread into asyncio, and forgets partials that came too late.

A partial is replaced by the next one and by its final, so a reader that falls behind sees fewer of them, and
what waits stays short. Everything else is kept in order.
What this file does not do: time out (sessions.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from edge_asr.runtime import Partial
from edge_asr.runtime.live.events import Event


class Outbox:
    """A queue of events with one writing thread and one reader in an event loop.

    Args:
        loop: that of the reader.

    Attributes:
        n_dropped: partials that were replaced before they were read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.n_dropped = 0
        self._loop = loop
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._is_closed = False
        self._news = asyncio.Event()

    def put(self, event: Event) -> None:
        """Append an event, from any thread; a waiting partial gives way to it."""
        with self._lock:
            if self._events and isinstance(self._events[-1], Partial):
                last = self._events[-1]
                if getattr(event, "id", None) == last.id:
                    self._events.pop()
                    self.n_dropped += 1
            self._events.append(event)
        self._wake()

    def close(self) -> None:
        """End the queue, from any thread; what waits can still be read."""
        with self._lock:
            self._is_closed = True
        self._wake()

    def __len__(self) -> int:
        return len(self._events)

    async def get(self) -> Event | None:
        """Wait for the next event; None at the end."""
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                if self._is_closed:
                    return None
                self._news.clear()
            await self._news.wait()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop has ended, and its reader with it
            pass
