#!/usr/bin/env python3
"""Sends a sound file to `edge-asr serve` as if it were spoken now, and prints what is heard.

pip install websockets soundfile
edge-asr serve &
python examples/serve/websocket_client.py speech.wav
"""

import asyncio
import json
import os
import sys

import soundfile
from websockets.asyncio.client import connect

BLOCK_S = 0.1


async def main(path: str, server: str = "ws://127.0.0.1:8765", pace: float = 1.0) -> None:
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    url = f"{server}/v1/listen?sample_rate={rate}&channels={samples.shape[1]}&endpoint=agent"
    token = os.environ.get("EDGE_ASR_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else None

    async with connect(url, additional_headers=headers) as client:

        async def speak() -> None:
            step = round(BLOCK_S * rate)
            for start in range(0, len(samples), step):
                await client.send(samples[start : start + step].tobytes())
                await asyncio.sleep(BLOCK_S / pace)
            await client.send(json.dumps({"type": "end"}))

        speaking = asyncio.create_task(speak())
        async for message in client:
            event = json.loads(message)
            if event["type"] == "partial":
                print(f"... {event['text']}")
            elif event["type"] == "final":
                words = " ".join(f"{word['text']} ({word['confidence']:.2f})" for word in event["words"])
                print(f"{event['start_s']:7.2f} s  {words}")
            elif event["type"] in ("error", "gap"):
                print(event)
        await speaking


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *sys.argv[2:3], *map(float, sys.argv[3:4])))
