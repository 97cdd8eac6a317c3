#!/usr/bin/env python3
"""Feeds a sound file into a Pipecat pipeline as if it were spoken now, and prints what its user says.

pip install 'edge-asr[cpu,pipecat]'
python examples/integrations/pipecat_file.py speech.wav
"""

import asyncio
import sys

import soundfile
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from edge_asr.integrations.pipecat import EdgeAsrSTTService

BLOCK_S = 0.02


class Printer(FrameProcessor):
    """Stands where an agent has its language model."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InterimTranscriptionFrame):
            print(f"... {frame.text}")
        elif isinstance(frame, TranscriptionFrame):
            print(f"{frame.result['start_s']:7.2f} s  {frame.text}")
        await self.push_frame(frame, direction)


async def main(path: str, pace: float = 1.0) -> None:
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    pipeline = Pipeline([EdgeAsrSTTService(), Printer()])
    worker = PipelineWorker(pipeline, params=PipelineParams(audio_in_sample_rate=rate))

    async def speak() -> None:
        step = round(BLOCK_S * rate)
        for start in range(0, len(samples), step):
            block = samples[start : start + step, 0].tobytes()
            await worker.queue_frame(InputAudioRawFrame(block, rate, 1))
            await asyncio.sleep(BLOCK_S / pace)
        await worker.queue_frame(EndFrame())

    @worker.event_handler("on_pipeline_started")
    async def on_pipeline_started(worker: PipelineWorker, frame: Frame) -> None:
        speaking.append(asyncio.create_task(speak()))

    speaking: list[asyncio.Task] = []
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(float, sys.argv[2:3])))
