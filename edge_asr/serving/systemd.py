"""What systemd and the server say to each other: a socket that is handed over, and that the server is ready.

Both are plain environment variables (sd_listen_fds(3), sd_notify(3)), so no library is needed.
"""

from __future__ import annotations

import os
import socket


def inherited_socket(path: str) -> socket.socket | None:
    """Return the socket that systemd listens with at `path` for this process; None if it has none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    for descriptor in range(3, 3 + int(os.environ.get("LISTEN_FDS", "0"))):
        found = socket.socket(fileno=descriptor)
        if found.family == socket.AF_UNIX and found.getsockname() == path:
            return found
        found.detach()
    return None


def notify(state: str) -> None:
    """Tell systemd a state, such as "READY=1", if it wants to know (`Type=notify`)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
