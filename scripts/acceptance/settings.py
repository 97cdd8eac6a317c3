"""The settings of one acceptance run, which the main process hands to the process of each section.

What this file does not do: run anything.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One acceptance run.

    Attributes:
        bundle: a working copy; engines are built into it.
        checkpoint: what the bundle was exported from, for PyTorch; None leaves PyTorch out.
        device: "cuda", or "cpu" in a rehearsal.
        precisions: the files of the bundle, which onnxruntime runs, in its order.
        engines, streams: precisions of the engines to build: of the offline graph, and of a step of a stream.
        buckets_s: seconds of audio at which latency is measured.
        max_batch: largest batch; batches double from 1 to it.
        batch_s: seconds of audio in a row of the batch scaling.
        rounds, warm_up: measured and unmeasured calls of each runner.
        compile: also measure torch.compile.
        manifest: speech with its text, for word error rates in the proof of engines; may be None.
        clips: recordings: sound files, or .npy where soundfile is missing; empty for the sample beside this.
    """

    bundle: str
    checkpoint: str | None
    device: str
    precisions: tuple[str, ...]
    engines: tuple[str, ...]
    streams: tuple[str, ...]
    buckets_s: tuple[float, ...]
    max_batch: int
    batch_s: float
    rounds: int
    warm_up: int
    compile: bool
    manifest: str | None
    clips: tuple[str, ...] = ()

    @property
    def rehearsal(self) -> bool:
        """Tell whether no GPU is used, so that no measurement means anything."""
        return self.device == "cpu"

    @property
    def batches(self) -> tuple[int, ...]:
        """Return 1, 2, 4, ... up to `max_batch`, which is always included."""
        powers = [2**n for n in range(self.max_batch.bit_length()) if 2**n < self.max_batch]
        return (*powers, self.max_batch)

    def write(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read what `write` wrote."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("precisions", "engines", "streams", "buckets_s", "clips"):
            values[name] = tuple(values[name])
        return cls(**values)
