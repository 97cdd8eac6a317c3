"""`edge-asr listen` without a microphone or a model, for tests: tones at real time, the fake recognizer.

python listen_to_tones.py [--json] [--fail] [--slowness X] WORD...   then silence until a signal comes
python listen_to_tones.py --seconds N WORD...
"""

from __future__ import annotations

import sys
from typing import cast

import click
import numpy as np
from tones import RATE, ToneRecognizer, silence, speak

from edge_asr.cli.listen import run_live
from edge_asr.cli.main import LazyGroup
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import FileSource
from edge_asr.runtime.live.stream import LiveConfig


class _Group(LazyGroup):
    """The real group's exit codes and one-line errors around the test's command."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return listen

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return "listen", listen, args[1:]


@click.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--fail", is_flag=True)
@click.option("--slowness", type=float, default=0.0)
@click.option("--seconds", type=float)
@click.argument("words", nargs=-1)
def listen(as_json: bool, fail: bool, slowness: float, seconds: float | None, words: tuple[str, ...]) -> None:
    """Listen to tones."""
    audio = np.concatenate([speak(words), silence(0.9), speak(words), silence(60)])
    live = LiveRecognizer(
        ToneRecognizer(slowness=slowness, fail_after=2 if fail else None),
        FileSource(audio, sample_rate=RATE),
        config=LiveConfig(max_audio_s=seconds),
    )
    code = run_live(live, as_json=as_json, greeting=lambda: "listening to tones")
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cast("LazyGroup", _Group("edge-asr")).main(["listen", *sys.argv[1:]])
