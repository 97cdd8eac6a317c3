"""What the WebSocket and the Unix socket share: the greeting, sound in and events out, the last words.

What this file does not do: read or write, which each of them does in its own way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from edge_asr import __version__
from edge_asr.errors import EdgeAsrError, RefusedError
from edge_asr.runtime.live.events import Event
from edge_asr.serving.limits import Limits
from edge_asr.serving.session import Session
from edge_asr.serving.sessions import Sessions

_SENTENCES = {
    "idle": "no sound came for {idle_s:g} s",
    "too_long": "a session may last {max_session_s:g} s",
    "draining": "the server is stopping",
    "error": "recognition ended with an error",
}


def greeting(core: Sessions, sample_rate: int) -> dict[str, Any]:
    """Return the "ready" event: what listens, to sound of which rate, within which limits."""
    return {
        "type": "ready",
        "server": f"edge-asr {__version__}",
        "model": core.name,
        "sample_rate": sample_rate,
        "max_session_s": core.limits.max_session_s,
        "idle_s": core.limits.idle_s,
        "queue_s": core.limits.queue_s,
    }


async def converse(
    session: Session, receive: Coroutine[Any, Any, None], send: Callable[[Event], Awaitable[None]]
) -> str:
    """Run `receive` while events are sent, until the session has ended; return its reason.

    Args:
        session: of the client.
        receive: pushes sound into the session; what it raises ends the conversation, but after an
            `EdgeAsrError`, which is about what the client sent, the finals of what was heard still come.
        send: sends an event.

    Raises:
        RefusedError: "slow_reader".
        Exception: what `receive` or `send` raises.
    """
    receiver = asyncio.ensure_future(receive)
    sender = asyncio.ensure_future(session.deliver(send))
    try:
        await asyncio.wait({receiver, sender}, return_when=asyncio.FIRST_COMPLETED)
        if receiver.done() and not sender.done() and isinstance(receiver.exception(), EdgeAsrError):
            session.end("bad_request")
            await asyncio.wait({sender})
        if receiver.done():
            receiver.result()
        return await sender
    finally:
        receiver.cancel()
        sender.cancel()
        await asyncio.gather(receiver, sender, return_exceptions=True)


def error_event(error: EdgeAsrError) -> dict[str, Any]:
    """Return the event of what a client asked for and cannot have."""
    kind = error.reason if isinstance(error, RefusedError) else "bad_request"
    return {"type": "error", "message": str(error), "kind": kind}


def last_events(session: Session, reason: str, limits: Limits) -> list[dict[str, Any]]:
    """Return what is said after the last final: why the session ended, if not by its client, and "end"."""
    end = {"type": "end", "reason": reason, "audio_s": round(session.audio_s, 3)}
    if reason in ("end", "error"):  # the session itself has said what failed
        return [end]
    return [{"type": "error", "message": sentence_of_reason(reason, limits), "kind": reason}, end]


def sentence_of_reason(reason: str, limits: Limits) -> str:
    """Say why a session ended; nothing if its client ended it."""
    return _SENTENCES.get(reason, "").format(idle_s=limits.idle_s, max_session_s=limits.max_session_s)
