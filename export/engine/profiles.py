"""Optimization profiles of an engine: from seconds and batch sizes to the shapes of every input.

Edges cut the lengths into buckets: each neighboring pair is one profile, tuned for its upper edge, so
"0.1, 2, 8, 30" gives three. A shape outside all profiles does not run. So shapes are checked here first,
because TensorRT's own messages name no remedy.
What this file does not do: build (builder.py), or choose a profile for an input (edge_asr.runtime).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from edge_asr.errors import ConfigError, EngineError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.engine.sidecar import EngineProfile
from edge_asr.runtime.features.extractor import FeatureExtractor

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]

DEFAULT_PROFILE_SECONDS = (0.1, 2.0, 8.0, 30.0)
DEFAULT_BATCH = (1, 1, 8)


def build_profiles(
    features: FeatureConfig,
    profile_seconds: Sequence[float] = DEFAULT_PROFILE_SECONDS,
    batch: Sequence[int] = DEFAULT_BATCH,
) -> tuple[EngineProfile, ...]:
    """Build one profile for each neighboring pair of edges.

    Args:
        features: front end of the model, which converts seconds to frames.
        profile_seconds: two or more rising lengths of sound, in seconds; if the first gives
            no frame, its profile begins at one.
        batch: smallest, best and largest number of rows, the same for all profiles.

    Raises:
        ConfigError: the edges do not rise by at least a frame each, or the batch sizes are out of order.
    """
    edges = [float(edge) for edge in profile_seconds]
    shown = ",".join(f"{edge:g}" for edge in edges)
    if len(edges) < 2 or not all(math.isfinite(edge) and edge >= 0.0 for edge in edges):
        raise ConfigError(
            f"profile seconds are {shown or 'empty'}; give two or more rising lengths, such as 0.1,2,8,30"
        )
    extractor = FeatureExtractor(features)
    frames = [max(extractor.n_frames(round(edge * features.sample_rate)), 1) for edge in edges]
    if any(upper <= lower for lower, upper in pairwise(frames)):
        raise ConfigError(
            f"profile seconds are {shown}, which is {', '.join(map(str, frames))} feature frames; each edge "
            "must be at least a frame longer than the one before it"
        )
    sizes = list(batch)
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ConfigError(
            f"batch is {','.join(map(str, sizes))}; give the smallest, best and largest, such as 1,1,8"
        )
    return tuple(
        EngineProfile(
            min_frames=lower,
            opt_frames=upper,
            max_frames=upper,
            min_batch=sizes[0],
            opt_batch=sizes[1],
            max_batch=sizes[2],
        )
        for lower, upper in pairwise(frames)
    )


def input_ranges(profile: EngineProfile, n_mels: int) -> dict[str, Range]:
    """Compute the smallest, best and largest shape of `audio_signal` [B, n_mels, T] and `length` [B]."""
    low, best, high = (profile.min_batch, profile.opt_batch, profile.max_batch)
    return {
        "audio_signal": (
            (low, n_mels, profile.min_frames),
            (best, n_mels, profile.opt_frames),
            (high, n_mels, profile.max_frames),
        ),
        "length": ((low,), (best,), (high,)),
    }


def check_inputs(network: Any, ranges: Mapping[str, Range], file: str) -> None:
    """Check that a profile covers every input of a parsed network, within the axes that the graph fixes.

    Args:
        network: TensorRT network definition.
        ranges: the shapes of one profile, by input name.
        file: name of the ONNX file, for the message.

    Raises:
        EngineError: an input has no profile, or its shape lies outside the graph's; the message names it.
    """
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if tensor.is_shape_tensor:
            raise EngineError(
                f"{file}: the input {tensor.name} sets the shape of other tensors, so a profile would need "
                "its values; export the model again with `edge-asr export` (there lengths only mask)"
            )
        if tensor.name not in ranges:
            if -1 not in shape:
                continue  # TensorRT needs no profile for it
            raise EngineError(
                f"{file}: the input {tensor.name} {list(shape)} has no optimization profile; profiles are "
                f"for the inputs {', '.join(ranges)}: export the model again with `edge-asr export`"
            )
        for which, asked in zip(("smallest", "best", "largest"), ranges[tensor.name], strict=True):
            if len(asked) != len(shape) or any(n not in (-1, a) for n, a in zip(shape, asked, strict=True)):
                raise EngineError(
                    f"{file}: the input {tensor.name} is {list(shape)} (-1 may vary), but the profile's "
                    f"{which} shape is {list(asked)}; export the model again with dynamic batch and time, or "
                    "give --batch and --profile-seconds that it can hold"
                )


def add_profiles(
    builder: Any, config: Any, network: Any, profiles: Sequence[EngineProfile], n_mels: int, file: str
) -> None:
    """Check `profiles` against the network and add them to the builder's configuration.

    Raises:
        EngineError: as in `check_inputs`, or TensorRT refuses a profile.
    """
    for number, profile in enumerate(profiles):
        ranges = input_ranges(profile, n_mels)
        check_inputs(network, ranges, file)
        added = builder.create_optimization_profile()
        refused = ""
        try:
            for index in range(network.num_inputs):
                name = network.get_input(index).name
                if name in ranges:
                    added.set_shape(name, *ranges[name])
        except RuntimeError as error:  # TensorRT's bindings raise it where C++ returns false
            refused = f" ({error})"
        if refused or config.add_optimization_profile(added) < 0:
            raise EngineError(
                f"{file}: TensorRT refuses optimization profile {number}, {ranges}{refused}; "
                "give other --profile-seconds or --batch"
            )
