"""The log of the server: a line for a session, a recording or a refusal; what was said only if asked.

What this file does not do: choose where the lines go (edge_asr/cli/serve.py).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from edge_asr.printable import json_line
from edge_asr.runtime import Final, Gap, Unmatched
from edge_asr.runtime.live.events import Event
from edge_asr.serving.observer import Observer, Watched

log = logging.getLogger("edge_asr.serving")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time (UTC), level, message, and the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": getattr(record, "event", None) or record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_line(line)


class Journal(Observer):
    """Writes what happens to the log, and passes it on.

    Args:
        then: another observer.
        with_text: whether what was said is written too.
    """

    def __init__(self, then: Observer, *, with_text: bool = False) -> None:
        self._then = then
        self._with_text = with_text

    def session_opened(self, session: Watched) -> None:
        """See `Observer`."""
        _write("session opened", session=session.number, sample_rate=session.options.sample_rate)
        self._then.session_opened(session)

    def session_closed(self, session: Watched, audio_s: float) -> None:
        """See `Observer`."""
        _write("session closed", session=session.number, reason=session.reason, audio_s=round(audio_s, 2))
        self._then.session_closed(session, audio_s)

    def event(self, session: Watched, event: Event) -> None:
        """See `Observer`."""
        if isinstance(event, Gap):
            _write("audio lost", session=session.number, lost_s=round(event.lost_s, 3), reason=event.reason)
        elif isinstance(event, Final | Unmatched):
            text = event.text if isinstance(event, Final) else event.heard
            said = {"text": text} if self._with_text else {}
            _write("final", session=session.number, id=event.id, compute_s=round(event.compute_s, 4), **said)
        self._then.event(session, event)

    def model_ran(self, purpose: Any, seconds: float) -> None:
        """See `Observer`."""
        self._then.model_ran(purpose, seconds)

    def stepped(self, seconds: float, rows: int) -> None:
        """See `Observer`."""
        self._then.stepped(seconds, rows)

    def transcribed(self, audio_s: float, seconds: float) -> None:
        """See `Observer`."""
        _write("recording transcribed", audio_s=round(audio_s, 2), seconds=round(seconds, 4))
        self._then.transcribed(audio_s, seconds)

    def refused(self, reason: str) -> None:
        """See `Observer`."""
        _write("refused", reason=reason)
        self._then.refused(reason)


def _write(event: str, **fields: Any) -> None:
    described = "".join(f" {name}={value}" for name, value in fields.items())
    log.info("%s%s", event, described, extra={"event": event, "fields": fields})
