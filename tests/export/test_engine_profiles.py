"""Seconds and batch sizes become shapes: by the front end's own count of frames, or a clear error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_asr.errors import ConfigError, EngineError
from edge_asr.export.engine.profiles import (
    add_profiles,
    build_profiles,
    build_stream_profiles,
    check_inputs,
    input_ranges,
)
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.runtime.engine.shapes import grid_frames
from edge_asr.runtime.engine.sidecar import EngineProfile
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.stream_geometry import StreamingGeometry

NEMO = FeatureConfig.from_preset("nemo")


def frames(profiles: tuple[EngineProfile, ...]) -> list[tuple[int, int, int]]:
    return [(p.min_frames, p.opt_frames, p.max_frames) for p in profiles]


def test_default_edges_are_three_profiles_tuned_for_their_geometric_middle() -> None:
    profiles = build_profiles(NEMO)
    assert frames(profiles) == [(10, 44, 200), (200, 400, 800), (800, 1549, 3000)]
    assert {(p.min_batch, p.opt_batch, p.max_batch) for p in profiles} == {(1, 1, 8)}


def test_edges_of_a_model_are_lengths_that_the_runtime_pads_to() -> None:
    """Their output frames are multiples of 16, and nothing between two profiles is left out."""
    by_4, by_8 = (OutputFrames(factor=factor) for factor in (4, 8))
    assert frames(build_profiles(NEMO, rule=by_4)) == [(64, 128, 256), (256, 512, 1024), (1024, 2048, 3072)]
    assert frames(build_profiles(NEMO, rule=by_8)) == [(128, 256, 256), (256, 512, 1024), (1024, 2048, 3072)]
    assert frames(build_profiles(NEMO, (0.1, 0.5, 1), rule=by_4)) == [(64, 64, 64), (64, 128, 128)]


@pytest.mark.parametrize("first", [-6, 1, 7])
@pytest.mark.parametrize("factor", [1, 4, 8])
@pytest.mark.parametrize("edges", [(0, 60), (0.1, 2, 8, 30), (1, 1.5, 7, 100)])
def test_the_best_length_is_one_that_runs_and_lies_in_its_profile(
    edges: tuple[float, ...], factor: int, first: int
) -> None:
    rule = OutputFrames(factor=factor, first=first)
    for profile in build_profiles(NEMO, edges, rule=rule):
        assert profile.min_frames <= profile.opt_frames <= profile.max_frames
        assert profile.opt_frames == grid_frames(profile.opt_frames, rule)


def test_edges_that_are_one_length_once_rounded_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"are 0.1,2,2.2,8, which is 64, 256, 256, 1024 .* once they are rounded"
    ):
        build_profiles(NEMO, (0.1, 2, 2.2, 8), rule=OutputFrames(factor=4))


GEOMETRY = StreamingGeometry(
    subsampling_factor=4,
    first_output_frames=1,
    frame_ms=40.0,
    chunk_frames=8,
    ahead_frames=0,
    left_frames=16,
    dropped_frames=1,
    reach_frames=3,
    n_layers=2,
    channel_width=64,
    time_width=32,
    time_frames=14,
)


def test_a_stream_has_a_profile_for_each_number_of_streams() -> None:
    profiles = build_stream_profiles(GEOMETRY)
    assert [(p.min_batch, p.opt_batch, p.max_batch) for p in profiles] == [(n, n, n) for n in (1, 8, 32, 64)]
    assert set(frames(profiles)) == {(32, 36, 36)}
    ranges = input_ranges(profiles[1], 80, GEOMETRY)
    assert ranges["audio_signal"] == ((8, 80, 32), (8, 80, 36), (8, 80, 36))
    assert ranges["cache_last_channel"] == ((8, 2, 16, 64),) * 3
    assert ranges["cache_last_time"] == ((8, 2, 32, 14),) * 3
    assert ranges["length"] == ranges["cache_last_channel_len"] == ((8,),) * 3


@pytest.mark.parametrize("streams", [(), (0,), (0, 1), (8, 1), (1, 1), (1, 2000)])
def test_numbers_of_streams_that_cannot_be(streams: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"streams are .*; give rising numbers from 1 to 1024, such as 1,8,32,64"
    ):
        build_stream_profiles(GEOMETRY, streams)


@pytest.mark.parametrize("preset", ["nemo", "nemo-2.4", "kaldi"])
def test_edges_are_what_the_front_end_gives_for_so_much_sound(preset: str) -> None:
    config = FeatureConfig.from_preset(preset)
    (profile,) = build_profiles(config, (0.5, 2.5))
    for edge_s, n_frames in ((0.5, profile.min_frames), (2.5, profile.max_frames)):
        sound = np.zeros(round(edge_s * config.sample_rate), np.float32)
        assert n_frames == len(FeatureExtractor(config)(sound))


def test_profiles_leave_no_length_out() -> None:
    profiles = build_profiles(NEMO, (0, 1, 1.5, 7))
    covered = {n for p in profiles for n in range(p.min_frames, p.max_frames + 1)}
    assert covered == set(range(1, 701))


@pytest.mark.parametrize(
    "edges", [(), (2,), (0.1, 2, 2), (2, 1), (1, 1.001), (-1, 2), (1, float("inf")), (1, float("nan"))]
)
def test_edges_that_do_not_rise_are_refused(edges: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="profile seconds are"):
        build_profiles(NEMO, edges)


@pytest.mark.parametrize("batch", [(), (1, 8), (0, 1, 8), (2, 1, 8), (1, 8, 4), (1, 1, 1, 1)])
def test_batches_that_fall_are_refused(batch: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="such as 1,1,8"):
        build_profiles(NEMO, (0.1, 2), batch)


def test_every_input_has_a_range() -> None:
    profile = EngineProfile(min_frames=1, opt_frames=2, max_frames=3, min_batch=4, opt_batch=5, max_batch=6)
    assert input_ranges(profile, 80) == {
        "audio_signal": ((4, 80, 1), (5, 80, 2), (6, 80, 3)),
        "length": ((4,), (5,), (6,)),
    }


def network(**shapes: Any) -> Any:
    """A fake TensorRT network: inputs by name and shape; those called `shape_...` are shape tensors."""
    inputs = [
        SimpleNamespace(name=name, shape=shape, is_shape_tensor=name.startswith("shape_"))
        for name, shape in shapes.items()
    ]
    return SimpleNamespace(num_inputs=len(inputs), get_input=lambda index: inputs[index])


RANGES = input_ranges(build_profiles(NEMO, (0.1, 2))[0], 80)


def test_inputs_that_are_covered_pass() -> None:
    check_inputs(network(audio_signal=(-1, 80, -1), length=(-1,), constant=(3, 4)), RANGES, "m.onnx")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"audio_signal": (-1, 80, -1), "cache": (-1, 4)}, "input cache .* has no optimization profile"),
        ({"audio_signal": (-1, 64, -1)}, r"is \[-1, 64, -1\] .* smallest shape is \[1, 80, 10\]"),
        ({"audio_signal": (1, 80, -1)}, r"largest shape is \[8, 80, 200\]"),
        ({"audio_signal": (-1, 80)}, "shape is"),
        ({"shape_length": (-1,)}, "sets the shape of other tensors"),
    ],
)
def test_inputs_that_are_not_covered_are_named(shapes: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        check_inputs(network(**shapes), RANGES, "m.onnx")


def test_fake_tensorrt_that_refuses_a_profile() -> None:
    set_shapes: list[str] = []
    builder = SimpleNamespace(
        create_optimization_profile=lambda: SimpleNamespace(
            set_shape=lambda name, *_: set_shapes.append(name)
        )
    )
    config = SimpleNamespace(add_optimization_profile=lambda profile: -1)
    inputs = network(audio_signal=(-1, 80, -1), length=(-1,))
    with pytest.raises(EngineError, match="refuses optimization profile 0"):
        add_profiles(builder, config, inputs, build_profiles(NEMO), 80, "m.onnx")
    assert set_shapes == ["audio_signal", "length"]


def test_fake_tensorrt_that_refuses_a_shape_of_a_profile() -> None:
    """As its bindings do (python/src/infer/pyCore.cpp): an exception, where C++ gives false."""

    def set_shape(name: str, *_: Any) -> None:
        raise RuntimeError(f"Shape provided for min is inconsistent with other shapes of {name}.")

    builder = SimpleNamespace(create_optimization_profile=lambda: SimpleNamespace(set_shape=set_shape))
    inputs = network(audio_signal=(-1, 80, -1), length=(-1,))
    with pytest.raises(EngineError, match=r"profile 0, .*inconsistent with other shapes of audio_signal"):
        add_profiles(builder, SimpleNamespace(), inputs, build_profiles(NEMO), 80, "m.onnx")
