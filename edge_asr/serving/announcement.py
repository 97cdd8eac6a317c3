"""Announces the Wyoming face to the network by mDNS, so that Home Assistant offers it; edge-asr[zeroconf].

What this file does not do: listen (wyoming_face.py).
"""

from __future__ import annotations

import ipaddress
import socket

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from edge_asr.errors import ConfigError
from edge_asr.serving.access import resolve

SERVICE = "_wyoming._tcp.local."


class Announcement:
    """The announcement of one server.

    Args:
        model: its name becomes part of the service's.
        host: where the server listens; a wildcard means every address of this machine.
    """

    def __init__(self, model: str, host: str) -> None:
        self._model = model
        self._addresses = [address for _, address in resolve(host)]
        self._zeroconf: AsyncZeroconf | None = None

    async def start(self, port: int) -> None:
        """Announce it, under another name if another machine has this one.

        Raises:
            ConfigError: the network takes no multicast.
        """
        machine = socket.gethostname().partition(".")[0]
        # One label of DNS has 63 bytes.
        label = f"edge-asr {self._model} at {machine}".replace(".", "-").encode()[:63].decode(errors="ignore")
        is_wild = any(ipaddress.ip_address(address).is_unspecified for address in self._addresses)
        info = AsyncServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=port,
            server=f"{machine}.local.",
            parsed_addresses=_own_addresses() if is_wild else self._addresses,
        )
        try:
            self._zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if is_wild else self._addresses)
            await self._zeroconf.async_register_service(info, allow_name_change=True)
        except (OSError, ZeroconfError) as error:
            raise ConfigError(
                f"the network cannot be told of the server ({error}); leave --zeroconf out"
            ) from error

    async def close(self) -> None:
        """Take the announcement back."""
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()


def _own_addresses() -> list[str]:
    found = [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]
