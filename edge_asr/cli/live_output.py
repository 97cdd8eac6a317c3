"""What `edge-asr listen` shows: events as lines or a live line, a summary, the list of devices.

What this file does not do: listen (listen.py).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edge_asr.cli.terminal import is_terminal, print_json, print_text, say

if TYPE_CHECKING:
    from edge_asr.runtime.live.capture import InputDevice
    from edge_asr.runtime.live.events import Event
    from edge_asr.runtime.live.recognizer import LiveRecognizer


class JsonPrinter:
    """Prints one event per line, flushed, so that a program gets it at once."""

    def __enter__(self) -> JsonPrinter:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, event: Event) -> None:
        """Show an event."""
        print_json(event.to_dict())


class TextPrinter:
    """Prints finals as lines, and the utterance in progress as a dim live line on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._to_terminal = is_terminal(sys.stdout)
        self._console = Console(stderr=not self._to_terminal, highlight=False)
        self._line = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._text = Text

    def __enter__(self) -> TextPrinter:
        if self._console.is_terminal:
            self._line.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        from edge_asr.runtime.live.events import DeviceChange, Final, Gap, Partial, Unmatched

        if isinstance(event, Partial):
            self._show_partial(event.text)
        elif isinstance(event, Final):
            self._show_partial("")
            if self._to_terminal:
                self._console.print(self._text(event.text))
            else:
                print_text(event.text + "\n")
        elif isinstance(event, Unmatched):
            self._show_partial("")
            self._note(f"no phrase of the grammar: {event.heard}")
        elif isinstance(event, Gap):
            self._note(str(event))
        elif isinstance(event, DeviceChange):
            self._note(event.message)

    def _note(self, message: str) -> None:
        if self._line.is_started:
            self._console.print(self._text(f"edge-asr: {message}"))
        else:
            say(message)

    def _show_partial(self, text: str) -> None:
        if not self._line.is_started:
            return
        room = max(10, self._console.width - 2)
        shown = text if len(text) <= room else "…" + text[-room + 1 :]
        self._line.update(self._text(shown, style="dim"), refresh=True)


def with_digits(event: Event) -> Event:
    """Write the numbers of an event in digits."""
    from edge_asr.runtime.digits import write_event_digits

    return write_event_digits(event)


def summarize(live: LiveRecognizer) -> str:
    """Say in one line what was heard, lost and computed."""
    stats = live.stats
    load = stats.compute_s / stats.audio_s if stats.audio_s else 0.0
    return (
        f"heard {stats.audio_s:.2f} s, {stats.n_finals} finals; {stats.n_gaps} gaps "
        f"({stats.lost_s:.2f} s lost), {stats.n_overflows} overflows; recognition took {load:.1%} of the time"
    )


def print_devices(devices: list[InputDevice], *, as_json: bool) -> None:
    """Print the input devices as a table, or as one JSON document."""
    if as_json:
        print_json({"devices": [device.to_dict() for device in devices]})
        return
    if not devices:
        say("no input devices; plug a microphone in")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("", "index", "name", "system", "channels", "rate"):
        table.add_column(heading)
    for device in devices:
        table.add_row(
            "*" if device.is_default else "",
            str(device.index),
            Text(device.name),
            device.host_api,
            str(device.max_channels),
            f"{device.sample_rate} Hz",
        )
    Console().print(table)
