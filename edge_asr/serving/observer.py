"""Who wants to know what the server does, such as its metrics and its log."""

from __future__ import annotations

from typing import Protocol

from edge_asr.runtime.live.events import Event
from edge_asr.serving.options import SessionOptions
from edge_asr.serving.turns import Purpose


class Watched(Protocol):
    """What an observer may know of a session."""

    number: int
    options: SessionOptions
    reason: str | None


class Observer:
    """Is told what happens; this one ignores it. Called from any thread."""

    def session_opened(self, session: Watched) -> None:
        """A session has begun."""

    def session_closed(self, session: Watched, audio_s: float) -> None:
        """A session has ended, after so much sound; its `reason` says why."""

    def event(self, session: Watched, event: Event) -> None:
        """Something was heard, lost or failed."""

    def model_ran(self, purpose: Purpose, seconds: float) -> None:
        """The model was run, which took so long, waiting included."""

    def stepped(self, seconds: float, rows: int) -> None:
        """A stream made a step, which took so long, waiting included, in a run of so many streams."""

    def transcribed(self, audio_s: float, seconds: float) -> None:
        """A recording was transcribed."""

    def refused(self, reason: str) -> None:
        """A client was refused or cut off."""
