"""Tokens, origins and names, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_asr.errors import ConfigError, RefusedError
from edge_asr.serving.access import Access, is_loopback, read_token

TOKEN = "correct-horse-battery-staple"


def test_tokens() -> None:
    Access().check_token(None)
    access = Access(token=TOKEN)
    access.check_token(TOKEN)
    for wrong in ("", "x", TOKEN + "x", TOKEN[:-1], "ü" * 30, "\udcff"):
        with pytest.raises(RefusedError, match="the token is wrong"):
            access.check_token(wrong)
    with pytest.raises(RefusedError, match="a token is required"):
        access.check_token(None)


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("", "the token has 0 characters; give 16 or more"),
        ("short", "the token has 5 characters; give 16 or more"),
        ("with a space in between", "the token has characters other than"),
        ("with/a+slash=and-more", "the token has characters other than"),
    ],
)
def test_bad_tokens(token: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Access(token=token)


@pytest.mark.parametrize("origin", ["*", "null", "example.org", "https://example.org/", "file:///tmp"])
def test_bad_origins(origin: str) -> None:
    with pytest.raises(ConfigError, match="give a scheme and a host"):
        Access(origins=frozenset({origin}))


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "[::1]:8765", "192.168.1.5", "localhost:80", "LOCALHOST"])
def test_names_that_are_ours(host: str) -> None:
    Access().check_page("http", host, None)
    Access().check_page("http", host, f"http://{host.lower()}")


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "@localhost.x"]
)
def test_names_that_are_not_ours(host: str) -> None:
    with pytest.raises(RefusedError, match="does not go by the name"):
        Access().check_page("http", host, None)


def test_a_token_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert read_token(file) == TOKEN
    file.write_text("two words\n")
    with pytest.raises(ConfigError, match="has 2 words; it must hold the token alone"):
        read_token(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


def test_what_others_can_reach() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    with pytest.raises(ConfigError, match=r"the host 'no\.such\.host\.invalid' is not known here"):
        is_loopback("no.such.host.invalid")
