"""Which context an export has, and whether it streams: by default, and when asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edge_asr.checkpoints import Checkpoint, SourceFacts, load_checkpoint
from edge_asr.errors import ConfigError
from edge_asr.export import StreamingOptions
from edge_asr.export.streaming.plan import StreamingPlan, plan_streaming

NEMO_CONTEXTS = ((70, 13), (70, 6), (70, 1), (70, 0))


@pytest.fixture(scope="module")
def plain(checkpoint_path: Path) -> Checkpoint:
    """Causal convolutions, subsampling x8 (80 ms), full context."""
    return load_checkpoint(checkpoint_path)


@pytest.fixture(scope="module")
def several(plain: Checkpoint) -> Checkpoint:
    """As NeMo's loader gives a model of several look-aheads."""
    config = dataclasses.replace(
        plain.model_config, attention_context=(70, 13), attention_context_style="chunked_limited"
    )
    facts = SourceFacts(attention_contexts=NEMO_CONTEXTS, attention_context_style="chunked_limited")
    return dataclasses.replace(plain, model_config=config, facts=facts)


def plan(checkpoint: Checkpoint, **options: Any) -> StreamingPlan:
    return plan_streaming(checkpoint, StreamingOptions(**options))


def context(plan: StreamingPlan) -> tuple[int, int] | None:
    assert plan.stream is not None
    return plan.stream.attention_context


def test_full_context_does_not_stream_unless_asked(plain: Checkpoint) -> None:
    assert plan(plain) == StreamingPlan(offline=plain.model_config, stream=None)
    assert context(plan(plain, enabled=True)) == (32, 7)  # 640 ms, 2560 ms
    asked = plan(plain, chunk_ms=300, left_context_ms=500)
    assert context(asked) == (8, 3)  # whole frames, whole chunks
    assert asked.offline == plain.model_config  # the offline graph keeps full context


def test_dynamic_chunks_stream_by_default(plain: Checkpoint) -> None:
    dynamic = dataclasses.replace(plain, facts=SourceFacts(dynamic_chunks=True))
    assert context(plan(dynamic)) == (32, 7)
    assert plan(dynamic, enabled=False).stream is None


def test_nemo_checkpoints_keep_nemos_caches_unless_asked(plain: Checkpoint) -> None:
    nemo = dataclasses.replace(plain, provenance={"format": "nemo"})
    assert (plan(plain, enabled=True).layout, plan(nemo, enabled=True).layout) == ("kv", "nemo")
    assert plan(plain, enabled=True, layout="nemo").layout == "nemo"
    assert plan(nemo, enabled=True, layout="kv").layout == "kv"


@pytest.mark.parametrize(("ms", "chosen"), [(None, (70, 13)), (480, (70, 6)), (80, (70, 1)), (0, (70, 0))])
def test_look_ahead_chooses_the_context_of_both_graphs(
    several: Checkpoint, ms: float | None, chosen: tuple[int, int]
) -> None:
    found = plan(several, lookahead_ms=ms)
    assert found.offline.attention_context == context(found) == chosen
    assert plan(several, lookahead_ms=ms, enabled=False).offline.attention_context == chosen


def test_an_unlimited_left_side_is_limited_for_the_stream_alone(several: Checkpoint) -> None:
    config = dataclasses.replace(several.model_config, attention_context=(-1, 6))
    unlimited = dataclasses.replace(several, model_config=config, facts=SourceFacts())
    found = plan(unlimited)
    assert found.offline.attention_context == (-1, 6)
    assert context(found) == (35, 6)  # 2560 ms are 32 frames, in chunks of 7
    assert context(plan(unlimited, left_context_ms=560)) == (7, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lookahead_ms": 160}, "lookahead_ms is 160; .* was trained with 0, 80, 480, 1040"),
        ({"chunk_ms": 640}, "trained with one context"),
        ({"left_context_ms": 640}, "70 encoder frames .5600 ms.; leave it out"),
    ],
)
def test_what_training_fixed_cannot_be_asked_for(
    several: Checkpoint, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(several, **options)


def test_look_ahead_of_a_model_without_limits_is_refused(plain: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="trained with none: it sees every later frame"):
        plan(plain, lookahead_ms=480)


def test_limited_context_that_cannot_stream_says_why(several: Checkpoint) -> None:
    config = dataclasses.replace(several.model_config, conv_context="symmetric")
    symmetric = dataclasses.replace(several, model_config=config)
    found = plan(symmetric)
    assert found.stream is None
    assert "convolutions look 4 frames ahead" in str(found.reason)
    with pytest.raises(ConfigError, match="cannot stream: its convolutions look 4 frames ahead"):
        plan(symmetric, enabled=True)


def test_look_ahead_that_grows_with_the_layers_streams_only_when_asked(several: Checkpoint) -> None:
    """Of 2 layers, 1 frame to the right each; and of NeMo's local attention, a band as wide on both sides."""
    for right, lookahead_ms in ((1, 160), (128, 20480)):
        config = dataclasses.replace(
            several.model_config, attention_context=(128, right), attention_context_style="regular"
        )
        band = dataclasses.replace(several, model_config=config, facts=SourceFacts())
        assert f"adds up to {lookahead_ms} ms" in str(plan(band).reason)
        assert context(plan(band, enabled=True)) == (128, right)
    causal = dataclasses.replace(config, attention_context=(128, 0))
    assert context(plan(dataclasses.replace(several, model_config=causal, facts=SourceFacts()))) == (128, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"lookahead_ms": -1},
        {"chunk_ms": 0},
        {"left_context_ms": float("nan")},
        {"enabled": False, "chunk_ms": 640},
        {"layout": "rows"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        StreamingOptions(**options)
