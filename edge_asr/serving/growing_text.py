"""The text of utterances in a row, for protocols that append to what they sent and cannot take it back.

The last word of a partial may still change, so it waits. Where a text has changed before its end, nothing is
sent; the protocol's own last message has the text that counts.
"""

from __future__ import annotations


class GrowingText:
    """Gives what there is to append."""

    def __init__(self) -> None:
        self._finals: list[str] = []
        self._sent = ""

    @property
    def text(self) -> str:
        """Return the finals so far."""
        return " ".join(self._finals)

    def add_partial(self, text: str) -> str:
        """Take the text of the utterance in progress; return what to append, often nothing."""
        settled = text.rpartition(" ")[0]
        return self._grow(" ".join([*self._finals, settled])) if settled else ""

    def add_final(self, text: str) -> str:
        """Take the text of an utterance that has ended; return what to append."""
        if text:
            self._finals.append(text)
        return self._grow(self.text)

    def _grow(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        delta, self._sent = text[len(self._sent) :], text
        return delta
