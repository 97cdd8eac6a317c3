"""The announcement with zeroconf itself as the one who looks, on this machine alone."""

from __future__ import annotations

import asyncio

import pytest
from serving_clients import run
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from edge_asr.errors import ConfigError
from edge_asr.serving import announcement
from edge_asr.serving.announcement import SERVICE, Announcement


def test_it_is_found_and_taken_back() -> None:
    async def work() -> tuple[str, int | None, list[str]]:
        found: asyncio.Queue[tuple[str, ServiceStateChange]] = asyncio.Queue()
        looking = AsyncZeroconf(interfaces=["127.0.0.1"])

        def note(zeroconf: object, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            if name.startswith("edge-asr tiny-en at ") and state_change is not ServiceStateChange.Updated:
                found.put_nowait((name, state_change))

        browser = AsyncServiceBrowser(looking.zeroconf, SERVICE, handlers=[note])
        announced = Announcement("tiny-en", "127.0.0.1")
        try:
            await announced.start(10300)
            name, change = await found.get()
            assert change is ServiceStateChange.Added
            info = AsyncServiceInfo(SERVICE, name)
            assert await info.async_request(looking.zeroconf, 3000)
            await announced.close()
            assert await found.get() == (name, ServiceStateChange.Removed)
            return name, info.port, info.parsed_addresses()
        finally:
            await browser.async_cancel()
            await looking.async_close()

    _, port, addresses = run(work())
    assert port == 10300
    assert addresses == ["127.0.0.1"]


def test_a_network_without_multicast_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(announcement, "AsyncZeroconf", fail)
    with pytest.raises(ConfigError, match=r"told of the server \(no such device\); leave --zeroconf out"):
        run(Announcement("tiny-en", "127.0.0.1").start(10300))


def test_all_addresses_are_not_those_of_this_machine_alone() -> None:
    assert not [address for address in announcement._own_addresses() if address.startswith("127.")]
