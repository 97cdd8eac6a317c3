"""The captions page at /: captions.html, and the headers that let it do what it does, and nothing else.

The Content-Security-Policy names the page's script and style by their hashes. `blob:` is for the
AudioWorklet, whose code the script holds as text: only a script that runs already can make such an address.
Whoever loads the page learns nothing by it, so it needs no token; all that it calls does.
What this file does not do: recognize, decide who may come.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from starlette.responses import HTMLResponse

_TOKEN = '<meta name="edge-asr-token" content="{}">'


def captions_response(*, token_required: bool) -> HTMLResponse:
    """Return the page, which asks for a token if that is required."""
    page = resources.files("edge_asr.serving").joinpath("captions.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _policy(page),
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-cache",
    }
    if token_required:
        page = page.replace(_TOKEN.format("none"), _TOKEN.format("required"))
    return HTMLResponse(page, headers=headers)


def _policy(page: str) -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(page, 'script')} blob:",
            f"style-src {_hash(page, 'style')}",
            "connect-src 'self'",
            "img-src data:",  # the icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(page: str, element: str) -> str:
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
