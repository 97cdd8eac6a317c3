"""Optimization profiles of an engine: from seconds and batch sizes to the shapes of every input.

Edges cut the lengths into buckets: each neighboring pair is one profile, so "0.1, 2, 8, 30" gives three.
Each is tuned for the geometric middle of its edges, because most sounds are shorter than the longest. All
three lengths are rounded up to those that the runtime pads to (runtime/engine/shapes.py). An engine of a
stream has a profile for each number of streams instead. A shape outside all profiles does not run. So shapes
are checked here first, because TensorRT's own messages name no remedy.
What this file does not do: build (builder.py), or choose a profile for an input (edge_asr.runtime).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from edge_asr.errors import ConfigError, EngineError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.runtime.engine.shapes import grid_frames
from edge_asr.runtime.engine.sidecar import EngineProfile
from edge_asr.runtime.engine.stream_runner import stream_input_dims
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.stream_geometry import StreamingGeometry

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]

DEFAULT_PROFILE_SECONDS = (0.1, 2.0, 8.0, 30.0)
DEFAULT_BATCH = (1, 1, 8)
DEFAULT_STREAMS = (1, 8, 32, 64)
MAX_STREAMS = 1024


def build_profiles(
    features: FeatureConfig,
    profile_seconds: Sequence[float] = DEFAULT_PROFILE_SECONDS,
    batch: Sequence[int] = DEFAULT_BATCH,
    *,
    rule: OutputFrames | None = None,
) -> tuple[EngineProfile, ...]:
    """Build one profile for each neighboring pair of edges.

    Args:
        features: front end of the model, which converts seconds to frames.
        profile_seconds: two or more rising lengths of sound, in seconds; if the first gives
            no frame, its profile begins at one.
        batch: smallest, best and largest number of rows, the same for all profiles.
        rule: the model's count of output frames; with it, lengths are rounded up to the runtime's.

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
    given = frames
    rising = all(upper > lower for lower, upper in pairwise(frames))
    if rising and rule is not None:
        frames = [grid_frames(edge, rule) for edge in frames]
        # The first profile may take one length only.
        rising = all(upper > lower for lower, upper in pairwise(frames[1:]))
    if not rising:
        rounded = " once they are rounded up to the lengths that run" if frames != given else ""
        raise ConfigError(
            f"profile seconds are {shown}, which is {', '.join(map(str, frames))} feature frames{rounded}; "
            "each edge must be at least a frame longer than the one before it"
        )
    sizes = list(batch)
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ConfigError(
            f"batch is {','.join(map(str, sizes))}; give the smallest, best and largest, such as 1,1,8"
        )
    return tuple(
        EngineProfile(
            min_frames=lower,
            # Still between the edges: an upper edge lies on the grid.
            opt_frames=grid_frames(middle, rule) if rule else middle,
            max_frames=upper,
            min_batch=sizes[0],
            opt_batch=sizes[1],
            max_batch=sizes[2],
        )
        for lower, upper in pairwise(frames)
        for middle in [math.isqrt(lower * upper)]
    )


def build_stream_profiles(
    geometry: StreamingGeometry, streams: Sequence[int] = DEFAULT_STREAMS
) -> tuple[EngineProfile, ...]:
    """Build one profile for each number of streams, tuned for every window but the first.

    Raises:
        ConfigError: the numbers do not rise, or one is impossible.
    """
    if (
        not streams
        or sorted(set(streams)) != list(streams)
        or not 1 <= streams[0] <= streams[-1] <= MAX_STREAMS
    ):
        raise ConfigError(
            f"streams are {','.join(map(str, streams)) or 'empty'}; give rising numbers from 1 to "
            f"{MAX_STREAMS}, such as 1,8,32,64"
        )
    return tuple(
        EngineProfile(
            min_frames=geometry.first_window_frames,
            opt_frames=geometry.window_frames,
            max_frames=geometry.window_frames,
            min_batch=n_streams,
            opt_batch=n_streams,
            max_batch=n_streams,
        )
        for n_streams in streams
    )


def input_ranges(
    profile: EngineProfile, n_mels: int, geometry: StreamingGeometry | None = None
) -> dict[str, Range]:
    """Compute the smallest, best and largest shape of `audio_signal` [B, n_mels, T] and `length` [B].

    With a geometry, those of a streaming graph, which has caches too.
    """
    if geometry is not None:
        edges = ("min", "opt", "max")
        sizes = [(getattr(profile, f"{e}_batch"), getattr(profile, f"{e}_frames")) for e in edges]
        low_dims, best_dims, high_dims = (stream_input_dims(geometry, n_mels, *size) for size in sizes)
        return {name: (low_dims[name], best_dims[name], high_dims[name]) for name in low_dims}
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
    builder: Any,
    config: Any,
    network: Any,
    profiles: Sequence[EngineProfile],
    n_mels: int,
    file: str,
    geometry: StreamingGeometry | None = None,
) -> None:
    """Check `profiles` against the network and add them to the builder's configuration.

    With a geometry the network is a streaming graph.

    Raises:
        EngineError: as in `check_inputs`, or TensorRT refuses a profile.
    """
    for number, profile in enumerate(profiles):
        ranges = input_ranges(profile, n_mels, geometry)
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
