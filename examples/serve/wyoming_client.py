#!/usr/bin/env python3
"""Speaks a sound file to a Wyoming server as a satellite of Home Assistant does, and prints what is heard.

pip install wyoming soundfile
edge-asr serve --wyoming 10300 &
python examples/serve/wyoming_client.py speech.wav tcp://127.0.0.1:10300 "kitchen lamp" "Anna"

The microphone stays open: the server says when the sentence was over.
"""

import asyncio
import sys

import soundfile
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.info import Describe, Info

BLOCK_S = 0.1


async def main(path: str, server: str = "tcp://127.0.0.1:10300", *names: str) -> None:
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    form = {"rate": rate, "width": 2, "channels": samples.shape[1]}
    step = round(BLOCK_S * rate)

    async with AsyncClient.from_uri(server) as client:

        async def speak() -> None:
            await client.write_event(AudioStart(**form).event())
            for start in range(0, len(samples), step):
                block = samples[start : start + step].tobytes()
                await client.write_event(AudioChunk(audio=block, **form).event())
                await asyncio.sleep(BLOCK_S)
            while True:  # the room is quiet now
                await client.write_event(AudioChunk(audio=bytes(samples[:step].nbytes), **form).event())
                await asyncio.sleep(BLOCK_S)

        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
        print("model:", info.asr[0].models[0].name)

        await client.write_event(Transcribe(language="en", transcript_names=list(names)).event())
        speaking = asyncio.create_task(speak())
        while (event := await client.read_event()) is not None:
            if TranscriptChunk.is_type(event.type):
                print("...", TranscriptChunk.from_event(event).text.strip())
            elif Transcript.is_type(event.type):
                print(Transcript.from_event(event).text)
                break
            elif Error.is_type(event.type):
                sys.exit(Error.from_event(event).text)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
