"""Learning rate and chunk geometry, which depend on the step alone, and the optimizer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_asr.training.config import OptimConfig, StreamingConfig
from edge_asr.training.muon import MuonAdamW


def learning_rate(config: OptimConfig, step: int, minutes: float) -> float:
    """Compute the learning rate of optimizer step `step` (from 0), `minutes` into the run."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.decay_over == "minutes":
        done = minutes / (config.max_minutes or 1.0)
    else:
        span = max(1, (config.max_steps or 1) - config.warmup_steps)
        done = (step - config.warmup_steps) / span
    done = min(max(done, 0.0), 1.0)
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * shape)


def draw_chunk(config: StreamingConfig, seed: int, step: int) -> tuple[int | None, int | None]:
    """Draw (chunk_frames, left_chunks) of a step; (None, None) is full context."""
    rng = np.random.default_rng([seed, step, 4])
    if rng.random() < config.full_context_prob:
        return None, None
    chunk = int(rng.integers(config.chunk_frames[0], config.chunk_frames[1] + 1))
    if rng.random() < config.unlimited_left_prob:
        return chunk, None
    return chunk, int(rng.integers(config.left_chunks[0], config.left_chunks[1] + 1))


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build the optimizer, with weight decay on matrices and none on biases and norms."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden: dict[int, list[nn.Parameter]] = {}
    decayed, plain = [], []
    for name, parameter in named:
        if parameter.ndim < 2 or "bias" in name:
            plain.append(parameter)
        elif config.optimizer == "muon" and parameter.ndim == 2 and ".layers." in name:
            rows, columns = parameter.shape
            parts = rows // columns if name.split(".")[-2] in ("qkv", "pointwise_in") else 1
            hidden.setdefault(parts, []).append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    kind: type[torch.optim.AdamW] = torch.optim.AdamW
    if config.optimizer == "muon":
        kind = MuonAdamW
        groups += [
            {"params": params, "weight_decay": config.weight_decay, "muon": True, "parts": parts}
            for parts, params in hidden.items()
        ]
    betas = (config.betas[0], config.betas[1])
    return kind(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
