"""The geometry in bundle.json: it comes back as it was, and contradictions are refused by name."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.stream_geometry import StreamingGeometry

#: NeMo's FastConformer of 480 ms, its first layers only.
NEMO = StreamingGeometry(
    subsampling_factor=8, first_output_frames=-6, frame_ms=80.0, chunk_frames=7, ahead_frames=0,
    left_frames=28, dropped_frames=2, reach_frames=0, n_layers=3, channel_width=64, time_width=64,
    time_frames=8,
)  # fmt: skip


def test_nemos_numbers() -> None:
    """golden.json of nemo-fastconformer-streaming: chunk_size [49, 56], pre_encode_cache_size [0, 9]."""
    assert (NEMO.first_window_frames, NEMO.shift_frames, NEMO.window_frames) == (49, 56, 65)
    assert NEMO.to_dict()["pre_encode_cache_frames"] == 9
    assert NEMO.lookahead_ms == 480.0
    assert [NEMO.window(step) for step in range(3)] == [(0, 49), (40, 105), (96, 161)]


def test_round_trip_through_json() -> None:
    assert StreamingGeometry.from_dict(json.loads(json.dumps(NEMO.to_dict()))) == NEMO


def test_older_bundles_have_nemos_layout() -> None:
    data = NEMO.to_dict()
    del data["layout"], data["n_heads"]
    assert StreamingGeometry.from_dict(data) == NEMO
    kv = dataclasses.replace(NEMO, layout="kv", n_heads=4)
    assert (kv.cache_last_channel, kv.cache_last_time) == ((24, 28, 8), (3, 8, 64))


@given(
    factor=st.sampled_from([1, 4, 8]),
    chunk=st.integers(1, 20),
    ahead=st.integers(0, 5),
    dropped=st.integers(0, 3),
    reach=st.integers(0, 15),
)
def test_windows_cover_each_chunk_once(factor: int, chunk: int, ahead: int, dropped: int, reach: int) -> None:
    geometry = dataclasses.replace(
        NEMO, subsampling_factor=factor, chunk_frames=chunk, ahead_frames=ahead, dropped_frames=dropped,
        reach_frames=reach,
    )  # fmt: skip
    sizes = [stop - start for start, stop in map(geometry.window, range(10))]
    assert sizes[0] == geometry.first_window_frames
    assert max(sizes) == sizes[-1] == geometry.window_frames
    assert sizes == sorted(sizes)
    ends = [geometry.window(step)[1] for step in range(10)]
    assert {later - earlier for earlier, later in itertools.pairwise(ends)} == {geometry.shift_frames}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_frames": 0}, "chunk_frames is 0"),
        ({"left_frames": 2.5}, "left_frames is 2.5"),
        ({"frame_ms": -1}, "frame_ms is -1"),
        ({"reach_frames": True}, "reach_frames is True"),
        ({"chunk_frames": 8}, "window_frames is 65; the other numbers say 73"),
        ({"cache_last_time": [3, 64, 9]}, "cache_last_time"),
        ({"lookahead_ms": 80.0}, "lookahead_ms is 80.0"),
        ({"layout": "rows"}, "layout is 'rows'"),
        ({"layout": "kv", "n_heads": 5}, "channel_width is 64; it must be a multiple of twice the 5 heads"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamingGeometry.from_dict({**NEMO.to_dict(), **changes})


def test_missing_numbers_are_refused() -> None:
    data = NEMO.to_dict()
    del data["dropped_frames"]
    with pytest.raises(ConfigError, match="lacks 'dropped_frames'"):
        StreamingGeometry.from_dict(data)
