#!/usr/bin/env python3
"""Measure how many hours of speech `edge-asr train` processes per hour of one core, by stage of a step.

The speech is synthetic (noise that swells like syllables), so nothing has to be there; the model, the batch
and the augmentation are those of a YAML, or of the default shape here. Times are the processor time of one
thread, so that other programs matter less; the least of several steps counts. Each variant runs
in turn: float32, bfloat16 with every convolution in bfloat16 (what autocast would do), and bfloat16 as it is
with `precision: bf16-mixed`.

    python scripts/bench_training.py            python scripts/bench_training.py my.yaml --repeats 8

The last line is JSON. It measures no learning: which precision learns as well is a question for `train`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.diagnostics.machine import Machine
from edge_asr.model import ConformerCTC
from edge_asr.model.subsampling.striding import FullPrecisionConv2d
from edge_asr.training.allocator import keep_freed_memory
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import config_from_dict, load_config
from edge_asr.training.corpus import Clip
from edge_asr.training.objective import CTCObjective
from edge_asr.training.pipeline import BatchBuilder
from edge_asr.training.plan import Item, Position
from edge_asr.training.schedule import build_optimizer
from edge_asr.training.setup import build_features, build_model_config, initialize_subsampling
from edge_asr.training.state import ExponentialAverage

CLIP_S = 6.0
TOKENS_PER_S = {4: 13.0, 8: 4.0}
DEFAULT: dict[str, Any] = {
    "model": {
        "preset": "tiny",
        "d_model": 192,
        "subsampling_factor": 8,
        "subsampling_channels": 64,
        "conv_kernel_size": 9,
        "dropout": 0.0,
        "dropout_attention": 0.0,
    },
    "features": {"preset": "nemo", "normalize": "none"},
    "augment": {"room_prob": 0.2, "codec_prob": 0.1, "vtlp_range": [0.9, 1.1]},
    "data": {"max_batch_s": 60.0},
}
STAGES = ("data", "forward", "backward", "optimizer")


def main() -> None:
    """Measure the variants in turn; print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("config", nargs="?", help="a training YAML; its manifests are not read")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=257, help="outputs, the blank included")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config = load_config(arguments.config) if arguments.config else config_from_dict(DEFAULT)
    results = {}
    for name, precision, every_convolution in (
        ("float32", torch.float32, False),
        ("bfloat16, every convolution too", torch.bfloat16, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        with convolutions_under_autocast(every_convolution):
            row = results[name] = measure(config, precision, arguments.vocab_size, arguments.repeats)
        stages = "  ".join(f"{stage} {row[stage]:.3f}" for stage in STAGES)
        print(
            f"{name:32} {row['hours_per_core_hour']:6.1f} h/h   {stages} s   ({row['audio_s']:.0f} s a step)"
        )
    result = {
        "bench": "training",
        "machine": describe_cpu(Machine()),
        "versions": package_versions(("torch", "numpy")),
        "variants": results,
    }
    print(json.dumps(result))


def measure(config: TrainConfig, precision: torch.dtype, vocab_size: int, repeats: int) -> dict[str, float]:
    """Processor seconds of each stage of a step, the least of `repeats`, and hours of speech a core hour."""
    torch.manual_seed(0)
    features = build_features(config, None)
    model = ConformerCTC(build_model_config(config, None, vocab_size, features)).train()
    initialize_subsampling(model)
    objective = CTCObjective(model, config.optim.intermediate_weight)
    optimizer = build_optimizer(model, config.optim)
    average = ExponentialAverage(model, 0.99)
    builder = build_builder(config, model, vocab_size)
    n_clips = max(1, int(config.data.max_batch_s / CLIP_S))
    best = dict.fromkeys(STAGES, float("inf"))
    audio_s = 0.0
    for repeat in range(repeats + 1):
        clock = [time.process_time()]
        items = [Item((n,), (1.0,), (0.0, 0.0), (0, repeat, 1, n), CLIP_S) for n in range(n_clips)]
        batch = builder[(Position(0, repeat), items)]
        clock.append(time.process_time())
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            losses = objective(
                batch.features, batch.feature_lens, batch.targets, batch.target_lens, None, None
            )
        clock.append(time.process_time())
        (losses[0] / len(batch.targets)).backward()
        clock.append(time.process_time())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model, repeat + 1)
        clock.append(time.process_time())
        audio_s = batch.audio_s
        if repeat:  # the first one warms up
            for stage, begun, ended in zip(STAGES, clock, clock[1:], strict=False):
                best[stage] = min(best[stage], ended - begun)
    return {
        **{stage: round(value, 4) for stage, value in best.items()},
        "audio_s": round(audio_s, 1),
        "hours_per_core_hour": round(audio_s / sum(best.values()), 1),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def build_builder(config: TrainConfig, model: ConformerCTC, vocab_size: int) -> BatchBuilder:
    """Batches of synthetic clips of `CLIP_S` seconds, as many as a batch holds."""
    rng = np.random.default_rng(0)
    features = build_features(config, None)
    n_samples = int(CLIP_S * features.sample_rate)
    swell = np.abs(np.sin(np.pi * 4 * np.arange(n_samples) / features.sample_rate))
    rate = TOKENS_PER_S.get(model.config.subsampling_factor, 3.0)
    clips, targets = [], []
    for number in range(max(1, int(config.data.max_batch_s / CLIP_S))):
        audio = (3000 * swell * rng.standard_normal(n_samples)).astype(np.int16)
        clips.append(Clip(str(number), "bench", number, "", n_samples, 1.0, Path(), audio))
        targets.append(rng.integers(0, vocab_size - 1, int(rate * CLIP_S)))
    mask_value = np.zeros(features.n_mels, np.float32)
    return BatchBuilder(clips, targets, features, config.augment, config.spec_augment, mask_value, 0)


@contextmanager
def convolutions_under_autocast(enabled: bool) -> Iterator[None]:
    """Let the convolutions that we keep in float32 run in bfloat16 as under autocast, if `enabled`."""
    kept = FullPrecisionConv2d.forward
    if enabled:
        FullPrecisionConv2d.forward = torch.nn.Conv2d.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        FullPrecisionConv2d.forward = kept  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
