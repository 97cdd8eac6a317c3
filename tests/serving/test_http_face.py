"""Who is let in, health, readiness and metrics, TLS, and connections that say nothing."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families
from serving_clients import HTTP, MakeServer, Running, Speech, hear, run, texts
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from edge_asr.errors import ConfigError
from edge_asr.serving import http_face
from edge_asr.serving.access import Access
from edge_asr.serving.tls import TlsFiles

TOKEN = "correct-horse-battery-staple"


def figures(running: Running, **headers: str) -> dict[str, float]:
    """Every sample of /metrics, by its name and labels."""
    answer = HTTP.get(f"{running.http}/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        f"{sample.name}{json.dumps(sample.labels) if sample.labels else ''}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_health_and_readiness(server: Running) -> None:
    assert HTTP.get(f"{server.http}/healthz").json() == {"status": "ok"}
    assert HTTP.get(f"{server.http}/readyz").json() == {"status": "ready"}
    server.core.is_draining = True
    try:
        assert HTTP.get(f"{server.http}/readyz").status_code == 503
        assert HTTP.get(f"{server.http}/healthz").status_code == 200
        assert status_of_socket(f"{server.ws}/v1/listen") == 503
        refused = HTTP.post(f"{server.http}/v1/audio/transcriptions", files={"file": b"x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    finally:
        server.core.is_draining = False


def test_metrics_count_what_happened(make_server: MakeServer, speech: Speech, sample_path: Path) -> None:
    with make_server() as running:
        before = figures(running)
        assert before['edge_asr_places_taken{"kind": "session"}'] == 0
        run(hear(f"{running.ws}/v1/listen", speech))
        with sample_path.open("rb") as file:
            HTTP.post(f"{running.http}/v1/audio/transcriptions", files={"file": file}).raise_for_status()
        assert status_of_socket(f"{running.ws}/v1/listen", Origin="https://evil.example") == 403
        after = figures(running)
    assert after["edge_asr_sessions_total"] == 1
    assert after['edge_asr_sessions_ended_total{"reason": "end"}'] == 1
    assert after['edge_asr_events_total{"type": "final"}'] == 3
    assert after['edge_asr_audio_seconds_total{"kind": "live"}'] == pytest.approx(7.8, abs=0.01)
    assert after['edge_asr_audio_seconds_total{"kind": "recording"}'] == pytest.approx(7.8, abs=0.01)
    assert after["edge_asr_final_seconds_count"] == 3
    assert after['edge_asr_model_run_seconds_count{"purpose": "final"}'] >= 3  # some in vain, during a pause
    assert after['edge_asr_model_run_seconds_count{"purpose": "file"}'] == 1
    # tiny-en streams: at least a step for each whole second, and nobody else to share it with.
    assert after["edge_asr_stream_step_seconds_count"] >= 7
    assert 0 < after["edge_asr_stream_step_seconds_sum"] < 60
    assert after["edge_asr_stream_step_rows_sum"] == after["edge_asr_stream_step_rows_count"]
    assert after["edge_asr_stream_step_rows_count"] == after["edge_asr_stream_step_seconds_count"]
    assert after['edge_asr_refused_total{"reason": "forbidden"}'] == 1
    assert after["process_resident_memory_bytes"] > 1e7


def status_of_socket(url: str, **headers: str) -> int:
    """The HTTP status of a handshake; 101 if it succeeds."""

    async def work() -> int:
        origin: Any = headers.pop("Origin", None)
        try:
            async with connect(url, origin=origin, additional_headers=headers or None):
                return 101
        except InvalidStatus as refusal:
            return refusal.response.status_code

    status: int = run(work())
    return status


def test_a_token_is_asked_for_everywhere_but_at_the_page_and_health(
    make_server: MakeServer, speech: Speech
) -> None:
    with make_server(access=Access(token=TOKEN)) as running:
        for path in ("/", "/healthz", "/readyz"):
            assert HTTP.get(running.http + path).status_code == 200
        for path in ("/metrics", "/v1/models", "/nothing", "/v1/audio/transcriptions"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                answer = HTTP.get(running.http + path, headers=header)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert TOKEN not in answer.text
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert HTTP.get(f"{running.http}/v1/models", headers=right).status_code == 200
        assert figures(running, **right)['edge_asr_refused_total{"reason": "unauthorized"}'] == 12
        url = f"{running.ws}/v1/listen"
        assert status_of_socket(url) == 401
        assert status_of_socket(url, Authorization="Bearer wrong") == 401
        assert status_of_socket(f"{url}?token={TOKEN}") == 401  # it would stand in logs
        assert status_of_socket(url, Authorization=f"Bearer {TOKEN}") == 101

        async def as_a_browser() -> str | None:
            protocols: Any = ["edge-asr", f"token.{TOKEN}"]
            async with connect(url, subprotocols=protocols) as client:
                return client.subprotocol

        assert run(as_a_browser()) == "edge-asr"


def test_pages_of_others_are_refused(make_server: MakeServer) -> None:
    access = Access(origins=frozenset({"https://captions.example"}), names=frozenset({"robot.example"}))
    with make_server(access=access) as running:
        url, here = f"{running.ws}/v1/listen", urlsplit(running.http).netloc
        assert status_of_socket(url, Origin=f"http://{here}") == 101
        assert status_of_socket(url, Origin="https://captions.example") == 101
        for origin in (
            "https://evil.example",
            f"https://{here}",
            "null",
            "http://localhost",
            "https://captions.example.evil",
        ):
            assert status_of_socket(url, Origin=origin) == 403, origin
            answer = HTTP.get(f"{running.http}/v1/models", headers={"Origin": origin})
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        # A name that was made to point here, with the page's own origin.
        rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
        answer = HTTP.get(f"{running.http}/v1/models", headers=rebound)
        assert answer.status_code == 403
        assert "does not go by the name 'evil.example'" in answer.json()["error"]["message"]
        for name in ("localhost:1", "127.0.0.1", "[::1]:80", "robot.example"):
            assert HTTP.get(f"{running.http}/v1/models", headers={"Host": name}).status_code == 200
        preflight = HTTP.options(f"{running.http}/v1/models", headers={"Origin": "https://captions.example"})
        assert preflight.status_code == 405


def test_tls(make_server: MakeServer, speech: Speech, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(str(key))
    certificate.cert_chain_pems[0].write_to_path(str(cert))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with make_server(tls=TlsFiles(certificate=cert, key=key)) as running:
        assert running.http.startswith("https://")
        assert httpx.get(f"{running.http}/healthz", verify=context).status_code == 200

        async def listen() -> str:
            async with connect(f"{running.ws}/v1/listen", ssl=context) as client:
                return str(await client.recv())

        assert '"ready"' in run(listen())
    with pytest.raises(ConfigError, match="are no certificate with its key"):
        TlsFiles(certificate=key, key=cert).check()


def test_a_connection_that_says_nothing_is_closed(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_face, "_FIRST_BYTES_S", 0.3)
    with make_server() as running:
        place = urlsplit(running.http)
        for beginning in (b"", b"GET /healthz HT", b"\x16\x03\x01"):
            with socket.create_connection((place.hostname, place.port), timeout=5) as raw:
                raw.sendall(beginning)
                received = raw.recv(1000)
                assert received == b"" or received.startswith(b"HTTP/1.1 400")


def test_garbage_fills_no_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    place = urlsplit(server.http)
    with socket.create_connection((place.hostname, place.port), timeout=5) as raw:
        raw.sendall(b"\x00garbage\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert not caplog.records


def test_connections_are_limited(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_face, "_CONNECTIONS_BESIDE", 2)
    with make_server(max_sessions=1, max_requests=1) as running:
        place = urlsplit(running.http)
        held = [socket.create_connection((place.hostname, place.port), timeout=5) for _ in range(6)]
        try:
            assert httpx.get(f"{running.http}/healthz").status_code == 503
        finally:
            for raw in held:
                raw.close()
        assert httpx.get(f"{running.http}/healthz").status_code == 200


def test_a_port_that_is_taken(make_server: MakeServer) -> None:
    from edge_asr.serving.run import listen

    with make_server() as running:
        port = urlsplit(running.http).port
        assert port is not None
        with pytest.raises(
            ConfigError, match=f"cannot listen at 127.0.0.1, port {port}: Address already in use; choose"
        ):
            listen("127.0.0.1", port)


def test_events_of_a_session_are_those_of_listen(server: Running, speech: Speech) -> None:
    events = run(hear(f"{server.ws}/v1/listen", speech[:48_000]))
    assert texts(events) == ["enter seven two five"]
    final = next(event for event in events if event["type"] == "final")
    assert {"words", "tokens", "start_s", "end_s", "reason"} <= set(final)
