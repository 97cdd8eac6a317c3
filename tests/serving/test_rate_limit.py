"""How fast an address may come: with a clock of the test, then at real servers of each protocol."""

from __future__ import annotations

import pytest
from serving_clients import HTTP, MakeServer, Running, Speech, hear, run, texts
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from wyoming.info import Describe
from wyoming_clients import client, make_face

from edge_asr.errors import RefusedError
from edge_asr.serving import rate_limit
from edge_asr.serving.access import Access
from edge_asr.serving.rate_limit import RateLimit

TOKEN = "correct-horse-battery-staple"
ADDRESS = "192.0.2.7"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def n_admitted(limit: RateLimit, address: str | None, n: int) -> int:
    """How many of so many requests at once are let in."""
    sentence = "more than 20 requests a second, or wrong tokens, came from this address; wait a second"
    for count in range(n):
        try:
            limit.admit(address)
        except RefusedError as refused:
            if refused.reason == "too_fast" and sentence in str(refused):
                return count
            raise
    return n


def test_a_burst_then_the_rate_and_others_are_not_disturbed() -> None:
    clock = Clock()
    limit = RateLimit(20, clock=clock)
    assert n_admitted(limit, ADDRESS, 500) in (100, 101)  # 5 s of 20, and sums of 1 / 20 are not exact
    clock.now += 2
    assert n_admitted(limit, ADDRESS, 500) in (39, 40, 41)
    assert n_admitted(limit, "192.0.2.8", 50) == 50
    for _ in range(300):  # as fast as is allowed, for as long as it likes
        clock.now += 0.051
        limit.admit(ADDRESS)
    clock.now += 60  # a pause earns no more than the burst
    assert n_admitted(limit, ADDRESS, 500) in (100, 101)


def test_wrong_tokens_cost_more() -> None:
    clock = Clock()
    limit = RateLimit(20, clock=clock)
    guesses = 0
    for _ in range(600):  # a minute, ten a second
        if n_admitted(limit, ADDRESS, 1):
            limit.fail(ADDRESS)
            guesses += 1
        clock.now += 0.1
    assert 55 <= guesses <= 70
    clock.now += 2
    limit.admit(ADDRESS)  # who knows it by now has to wait a second or two


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", None, "", "unix"])
def test_this_machine_is_not_limited(address: str | None) -> None:
    limit = RateLimit(20, clock=Clock())
    assert n_admitted(limit, address, 1000) == 1000
    for _ in range(100):
        limit.fail(address)
    limit.admit(address)


def test_addresses_that_are_one_client() -> None:
    limit = RateLimit(20, clock=Clock())
    assert sum(n_admitted(limit, f"2001:db8:1:2::{n:x}", 1) for n in range(500)) in (100, 101)
    assert n_admitted(limit, "2001:db8:1:3::1", 1) == 1
    assert n_admitted(limit, "fe80::1%eth0", 500) in (100, 101)
    n_admitted(limit, ADDRESS, 500)
    assert n_admitted(limit, f"::ffff:{ADDRESS}", 1) == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_MOST_ADDRESSES", 100)
    limit = RateLimit(20, clock=Clock())
    n_admitted(limit, ADDRESS, 500)
    for n in range(99):
        limit.admit(f"198.51.100.{n}")
    assert n_admitted(limit, ADDRESS, 1) == 0
    limit.admit("203.0.113.1")
    assert len(limit._paid_at) == 100


@pytest.fixture
def as_if_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the clients of the test, which come over loopback."""
    monkeypatch.setattr(rate_limit, "_countable", lambda address: address)


def test_http_and_websocket(make_server: MakeServer, speech: Speech, as_if_from_elsewhere: None) -> None:
    async def status_of_socket(running: Running) -> int:
        with pytest.raises(InvalidStatus) as refusal:
            await connect(f"{running.ws}/v1/listen").__aenter__()
        return refusal.value.response.status_code

    with make_server(max_rate=0.5) as running:  # 2.5 at once
        assert texts(run(hear(f"{running.ws}/v1/listen", speech[: round(2.9 * 16_000)])))
        running.core.rate_limit = RateLimit(0.001)
        assert HTTP.get(f"{running.http}/healthz").status_code == 200
        refused = HTTP.get(f"{running.http}/v1/models")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["error"]["code"] == "too_fast"
        assert run(status_of_socket(running)) == 429


def test_wrong_tokens_at_the_server(make_server: MakeServer, as_if_from_elsewhere: None) -> None:
    wrong, right = ({"Authorization": f"Bearer {token}"} for token in ("no" * 8, TOKEN))
    with make_server(access=Access(token=TOKEN), max_rate=1000) as running:
        clock = Clock()
        running.core.rate_limit = RateLimit(1000, clock=clock)
        codes = [HTTP.get(f"{running.http}/v1/models", headers=wrong).status_code for _ in range(8)]
        assert codes == [401] * 5 + [429] * 3
        assert HTTP.get(f"{running.http}/v1/models", headers=right).status_code == 429
        clock.now += 2
        assert HTTP.get(f"{running.http}/v1/models", headers=right).status_code == 200


def test_wyoming(make_server: MakeServer, as_if_from_elsewhere: None) -> None:
    async def ask(running: Running) -> tuple[str, str]:
        async with client(running) as connected:
            await connected.write_event(Describe().event())
            event = await connected.read_event()
            assert event is not None
            return event.type, str(event.data.get("code"))

    with make_server(make_face=make_face, max_rate=0.001) as running:
        assert run(ask(running))[0] == "info"
        assert run(ask(running)) == ("error", "too_fast")


def test_riva(make_server: MakeServer, as_if_from_elsewhere: None) -> None:
    grpc = pytest.importorskip("grpc", reason="needs edge-asr[riva]")
    from edge_asr.serving.riva_face import RivaFace, _address
    from edge_asr.serving.riva_messages import PACKAGE

    assert _address("ipv4:192.0.2.7:5000") == ADDRESS
    assert _address("ipv6:%5B2001:db8::1%5D:5000") == "2001:db8::1"

    with (
        make_server(
            make_face=lambda core: RivaFace(core, host="127.0.0.1", port=0, access=Access()), max_rate=0.001
        ) as running,
        grpc.insecure_channel(running.http.removeprefix("grpc://")) as channel,
    ):
        call = channel.unary_unary(f"/{PACKAGE}.RivaSpeechRecognition/GetRivaSpeechRecognitionConfig")
        assert b"tiny-en" in call(b"", timeout=20)
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", timeout=20)
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "requests a second" in refusal.value.details()
