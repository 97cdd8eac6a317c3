#!/usr/bin/env python3
"""Feeds a sound file into the LiveKit plug-in as if it were spoken now, and prints what is heard.

pip install 'edge-asr[cpu,livekit]'
python examples/integrations/livekit_file.py speech.wav

In an agent it is AgentSession(stt=STT(), ...), and a prewarm_fnc may call STT.prewarm.
"""

import asyncio
import sys

import soundfile
from livekit import rtc
from livekit.agents.stt import SpeechEventType

from edge_asr.integrations.livekit import STT

BLOCK_S = 0.02


async def main(path: str, pace: float = 1.0) -> None:
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    plugin = STT()
    plugin.prewarm()
    async with plugin.stream() as stream:

        async def speak() -> None:
            step = round(BLOCK_S * rate)
            for start in range(0, len(samples), step):
                block = samples[start : start + step]
                stream.push_frame(rtc.AudioFrame(block.tobytes(), rate, block.shape[1], len(block)))
                await asyncio.sleep(BLOCK_S / pace)
            stream.end_input()

        speaking = asyncio.create_task(speak())
        async for event in stream:
            if event.type == SpeechEventType.INTERIM_TRANSCRIPT:
                print(f"... {event.alternatives[0].text}")
            elif event.type == SpeechEventType.FINAL_TRANSCRIPT:
                data = event.alternatives[0]
                print(f"{data.start_time:7.2f} s  {data.text} ({data.confidence:.2f})")
        await speaking
    await plugin.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(float, sys.argv[2:3])))
