"""Decides who may come: the token, the Origin of a page, the name by which the server was called.

A program needs the token, if there is one. A page in a browser is the other danger: it can call a server on
this machine for a stranger. So a request with an Origin is refused unless that is the server itself or was
allowed; and since a stranger's name can be made to point here (DNS rebinding), so is one whose Host is a name
that this server does not go by. Addresses cannot be rebound. docs/security.md has the threat model.
What this file does not do: read requests.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from edge_asr.errors import ConfigError, RefusedError

MIN_TOKEN_CHARACTERS = 16
#: What may stand in a header, in the name of a WebSocket subprotocol and in a shell without quotes.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")
_ADVICE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may come.

    Attributes:
        token: what a client must know; None lets everybody in who can reach the server.
        origins: pages that may call, such as "https://example.org"; "null" is none of them.
        names: names by which the server may be called, without port, besides addresses and localhost.

    Raises:
        ConfigError: a token that is too short or has other characters, or an origin that is none.
    """

    token: str | None = None
    origins: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.token is not None:
            if len(self.token) < MIN_TOKEN_CHARACTERS:
                raise ConfigError(
                    f"the token has {len(self.token)} characters; give {MIN_TOKEN_CHARACTERS} or more, and "
                    f"{_ADVICE}"
                )
            if not _TOKEN.fullmatch(self.token):
                raise ConfigError(f"the token has characters other than A-Z a-z 0-9 . _ ~ -; {_ADVICE}")
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}":
                raise ConfigError(f"the origin is {origin!r}; give a scheme and a host: https://example.org")

    def check_page(self, scheme: str, host: str, origin: str | None) -> None:
        """Refuse a request that a foreign page makes.

        Args:
            scheme: "http" or "https", that of the server.
            host: the header Host.
            origin: the header Origin; None if there is none.

        Raises:
            RefusedError: "forbidden".
        """
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if not (_is_address(name) or name in self._names):
            raise RefusedError(
                "forbidden",
                f"this server does not go by the name {name!r}; call it by its address, or start it with "
                f"--allow-host {name}",
            )
        if origin is None or origin in self.origins or origin.lower() == f"{scheme}://{host.lower()}":
            return
        raise RefusedError(
            "forbidden",
            f"pages of {origin[:100]!r} may not call this server; --allow-origin {origin[:100]} lets them",
        )

    def check_token(self, given: str | None) -> None:
        """Refuse a client without the right token.

        Args:
            given: what the client sent; None if nothing.

        Raises:
            RefusedError: "unauthorized".
        """
        if self.token is None:
            return
        if given is None:
            raise RefusedError("unauthorized", "a token is required: send Authorization: Bearer TOKEN")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode()):
            raise RefusedError("unauthorized", "the token is wrong")

    @property
    def _names(self) -> frozenset[str]:
        machine = socket.gethostname().lower()
        return self.names | {"localhost", machine, f"{machine}.local"}


def read_token(path: Path) -> str:
    """Read a token from the first line of a file.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from error
    if len(lines) != 1:
        raise ConfigError(f"the token file {path} has {len(lines)} words; it must hold the token alone")
    return lines[0]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach what listens at `host`.

    Raises:
        ConfigError: the name cannot be resolved.
    """
    return all(ipaddress.ip_address(address).is_loopback for _, address in resolve(host))


def resolve(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return the addresses of a host to listen at, each once.

    Raises:
        ConfigError: the name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"the host {host!r} is not known here ({error}); give an address") from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
