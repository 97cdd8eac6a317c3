#!/usr/bin/env python3
"""Transcribes a sound file by `edge-asr serve` with OpenAI's own package: with word times, and streamed.

pip install openai
edge-asr serve &
python examples/serve/openai_client.py speech.wav
"""

import os
import sys
from pathlib import Path

from openai import OpenAI


def main(path: str, server: str = "http://127.0.0.1:8765") -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key=os.environ.get("EDGE_ASR_TOKEN", "none"))
    model = client.models.list().data[0].id

    answer = client.audio.transcriptions.create(
        model=model,
        file=Path(path),
        response_format="verbose_json",
        timestamp_granularities=["word"],
        extra_body={"digits": "true"},  # ours: hotwords, grammar and digits
    )
    for word in answer.words or ():
        print(f"{word.start:7.2f} {word.end:7.2f}  {word.word}")

    for event in client.audio.transcriptions.create(model=model, file=Path(path), stream=True):
        if event.type == "transcript.text.delta":
            print(event.delta, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
