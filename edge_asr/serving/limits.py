"""How much a client may ask of the server, and the words for what it is refused.

Reasons of a `RefusedError`, which each face turns into a status or close code of its protocol:

    busy          all places are taken
    too_fast      more requests a second, or wrong tokens, than are taken from an address
    draining      the server is stopping
    too_large     more bytes, channels or samples a second than are taken
    too_long      more seconds than a session or a recording may have
    idle          nothing came for too long
    slow_reader   the client does not take its events
    bad_request   what was asked cannot be done as it was asked
    not_found     there is no such model
    unauthorized  the token is missing or wrong
    forbidden     a page or a name from elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from edge_asr.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what the server does for its clients at a time, and for each of them.

    Attributes:
        max_sessions: live sessions at the same time.
        max_requests: recordings at the same time: being received, waiting or being transcribed.
        max_session_s: longest session, and the longest recording.
        max_upload_bytes: largest recording.
        idle_s: how long a session or a request may send nothing; a request may take ten times that in all.
        slow_reader_s: how long an event may wait for a client that does not read.
        queue_s: sound of a session that waits for recognition; then the client has to wait, or loses some.
            At most 8 MiB of it wait.
        max_rate: new requests a second from one address of another machine (rate_limit.py).
    """

    max_sessions: int = 16
    max_requests: int = 8
    max_session_s: float = 4 * 3600.0
    max_upload_bytes: int = 64 << 20
    idle_s: float = 30.0
    slow_reader_s: float = 20.0
    queue_s: float = 10.0
    max_rate: float = 20.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{field.name} is {value}; give a positive number")
