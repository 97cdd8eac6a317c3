"""Refuses an address that begins new requests, or fails the token, faster than any honest client does.

Each address has a debt in seconds: a request adds 1 / rate, a wrong token a second more, and time pays it
off. Who owes more than `_BURST_S` is refused until that is paid; what is refused adds nothing. All protocols
share it. This machine itself is exempt, by loopback and by Unix socket: all its programs, tunnels and proxies
have one address there, so that one of them could lock out the others. The addresses of an IPv6 network of 64
bits count as one, because one client has them all.
What this file does not do: limit what goes on at the same time (sessions.py).
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from edge_asr.errors import RefusedError

_BURST_S = 5.0
_FAILURE_S = 1.0
_MOST_ADDRESSES = 10_000


class RateLimit:
    """Knows how fast each address has been; for one event loop.

    Args:
        per_s: new requests a second that an address may begin for any time, and five times that at once.
        clock: a steady clock, in seconds.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        # When each has paid. The one that came last stands last, and beyond the most the first is forgotten.
        self._paid_at: OrderedDict[str, float] = OrderedDict()

    def admit(self, address: str | None) -> None:
        """Count a new request of an address.

        Args:
            address: an IP address; anything else, and one of this machine, is let in uncounted.

        Raises:
            RefusedError: "too_fast".
        """
        name, now = _countable(address), self._clock()
        if name is None:
            return
        if self._paid_at.get(name, now) > now + _BURST_S:
            raise RefusedError(
                "too_fast",
                f"more than {self._per_s:g} requests a second, or wrong tokens, came from this address; wait "
                "a second, and send less often",
            )
        self._charge(name, 1 / self._per_s)

    def fail(self, address: str | None) -> None:
        """Count a wrong token of an address."""
        name = _countable(address)
        if name is not None:
            self._charge(name, _FAILURE_S)

    def _charge(self, name: str, seconds: float) -> None:
        now = self._clock()
        self._paid_at[name] = max(self._paid_at.get(name, now), now) + seconds
        self._paid_at.move_to_end(name)
        if len(self._paid_at) > _MOST_ADDRESSES:
            self._paid_at.popitem(last=False)


def _countable(address: str | None) -> str | None:
    """Return the name under which an address is counted; None for one that is not."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if found.is_loopback:
        return None
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
