"""Measures where the time of a recognition goes, as the recognizer reports it: features, encode, decode.

`StagedRecognizer` is a `Recognizer` with an observer of its stages (`StageTime`) and a clock around each
call. It runs the same code on the same data as `Recognizer`, and only reads clocks in between (about a
microsecond per call). The stages add up to the time of the call:

    features   checks, resampling, log-mel, normalization, assembly of the batch
    encode     the backend's call, with copies to and from the device
    decode     the rest: the decoder, token and word times, segments, stitching of windows

Copies are inside `encode`, and are also timed alone if the backend supports it (offline.py).
What this file does not do: repeat runs, summarize, compare texts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.backends import Backend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.stages import StageTime
from edge_asr.runtime.transcript import Transcript

F32Array = npt.NDArray[np.float32]


@dataclass(slots=True)
class RunTimes:
    """The times of one call, in seconds.

    Attributes:
        total_s: the whole call.
        processor_s: processor time of all threads of the process meanwhile.
        features_s, encode_s, decode_s: its stages; they add up to `total_s`.
        passes: rows and feature frames, [B, T], of each run of the model.
    """

    total_s: float = 0.0
    processor_s: float = 0.0
    features_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    passes: list[tuple[int, int]] = field(default_factory=list)


class StagedRecognizer(Recognizer):
    """A recognizer that records where its time went, for one thread at a time; see `Recognizer.load`."""

    def __init__(self, backend: Backend, **parts: Any) -> None:
        self.times = RunTimes()
        super().__init__(backend, **{**parts, "on_stage": self._note})

    def run(self, clips: Sequence[F32Array], sample_rate: int) -> tuple[list[Transcript], RunTimes]:
        """Recognize clips as a user would, one by `transcribe`, several by `transcribe_batch`.

        Args:
            clips: waveforms [S].
            sample_rate: Hz.

        Returns:
            Their transcripts, and the times of this call.
        """
        self.times = times = RunTimes()
        busy = time.process_time()
        began = time.perf_counter()
        if len(clips) == 1:
            transcripts = [self.transcribe(clips[0], sample_rate)]
        else:
            transcripts = self.transcribe_batch([(clip, sample_rate) for clip in clips])
        times.total_s = time.perf_counter() - began
        times.processor_s = time.process_time() - busy
        times.decode_s = times.total_s - times.features_s - times.encode_s
        return transcripts, times

    def _note(self, stage: StageTime) -> None:
        if stage.name == "features":
            self.times.features_s += stage.seconds
        elif stage.name == "encode":
            assert stage.batch is not None
            self.times.encode_s += stage.seconds
            self.times.passes.append(stage.batch)
