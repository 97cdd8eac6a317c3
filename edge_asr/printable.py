"""Makes text from outside, such as the name of a file, fit for a line on a terminal or for JSON.

The name of a file may hold anything but NUL and "/": a newline, an escape sequence that a terminal obeys,
bytes that are not UTF-8. Python turns such bytes into lone surrogates (PEP 383), which no stream accepts.
What this file does not do: print.
"""

from __future__ import annotations

import json
import re
from typing import Any

#: Control characters (C0, DEL, C1), separators of lines, marks that reorder text, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return the text on one line: a newline as `\n`, ESC as `\x1b`, a byte that is not UTF-8 as `\xff`."""
    return _UNSAFE.sub(_escape, text)


def json_line(document: Any) -> str:
    """Format one line of JSON in valid UTF-8, whatever names it holds; reading it gives the same names."""
    text = json.dumps(document, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        character = chr(ord(character) - 0xDC00)
    return character.encode("unicode_escape").decode("ascii")
