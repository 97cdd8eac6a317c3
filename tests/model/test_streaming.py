"""Chunk by chunk, the step gives what the model gives for the clip at once under the same context.

Tolerance 2e-5: the same products in float32, over fewer keys at once; the models' log-probs lie within about
20.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from small_models import N_MELS, build_model
from torch import Tensor

from edge_asr.errors import ConfigError
from edge_asr.export.inference_form import (
    HalfPositions,
    freeze_stream_positions,
    to_inference_form,
)
from edge_asr.feature_config import FeatureConfig
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.model.streamable import geometry_from_config, why_not_streamable
from edge_asr.model.streaming import StreamCaches, StreamingStep
from edge_asr.stream_geometry import StreamLayout

FEATURES = FeatureConfig.from_preset("nemo", n_mels=N_MELS)
CHUNKED: dict[str, Any] = {"attention_context": (6, 2), "attention_context_style": "chunked_limited"}
WENET: dict[str, Any] = {
    **CHUNKED, "attention": "absolute_pos", "subsampling": "conv2d", "conv_padding": "before_pointwise",
    "output_norm": True, "xscaling": True,
}  # fmt: skip
#: What streams: of each kind of subsampling, context, convolution and block one at least.
STREAMABLE: dict[str, dict[str, Any]] = {
    "nemo": {**CHUNKED, "subsampling_causal": True, "conv_norm": "layer_norm", "xscaling": True},
    "nemo x4": {**CHUNKED, "subsampling": "striding", "subsampling_factor": 4, "subsampling_causal": True},
    "nemo x2": {**CHUNKED, "subsampling_factor": 2, "subsampling_causal": True},
    "no look-ahead": {**CHUNKED, "attention_context": (5, 0), "subsampling_causal": True},
    "centered": CHUNKED,
    "centered x16": {**CHUNKED, "subsampling_factor": 16, "n_mels": N_MELS},
    "ours": {**CHUNKED, "attention_context": (8, 3), "subsampling_factor": 4},
    "band": {"attention_context": (4, 0)},
    "band with look-ahead": {"attention_context": (4, 1), "subsampling_causal": True},
    "band, convolution ahead": {"attention_context": (4, 1), "conv_context": [3, 1]},
    "many heads": {**CHUNKED, "n_heads": 8, "subsampling_causal": True},
    "convolution first": {**CHUNKED, "block_order": "convolution_first"},
    "parallel": {**CHUNKED, "block_order": "parallel"},
    "wenet": {**WENET, "subsampling_factor": 4, "conv_norm": "layer_norm"},
    "wenet x6": {**WENET, "subsampling_factor": 6, "n_mels": 24},
    "no subsampling": {**CHUNKED, "subsampling": "none", "subsampling_factor": 1, "d_model": N_MELS},
}


def streamable_model(name: str) -> ConformerCTC:
    """The model of a row of `STREAMABLE`, its convolutions causal unless it says otherwise."""
    return build_model(**{"conv_context": "causal", **STREAMABLE[name]})


def make_step(model: ConformerCTC, layout: StreamLayout = "nemo") -> StreamingStep:
    features = dataclasses.replace(FEATURES, n_mels=model.config.n_mels)
    return StreamingStep(model, geometry_from_config(model.config, features, layout))


def run_stream(step: StreamingStep, features: Tensor) -> Tensor:
    """Every valid log-prob frame of features [T, F]."""
    geometry, state, outputs = step.geometry, step.initial_state(), []
    for number in range(1000):
        start, stop = geometry.window(number)
        window = torch.full((1, stop - start, features.shape[1]), float("nan"))  # padding may hold anything
        n_there = max(min(stop, len(features)) - start, 0)
        window[0, :n_there] = features[start : start + n_there]
        log_probs, n_valid, state = step(window, torch.tensor([n_there]), state)
        outputs.append(log_probs[0, : int(n_valid)])
        if stop >= len(features) and int(n_valid) < geometry.chunk_frames:
            return torch.cat(outputs)
    raise AssertionError("the stream does not end")


@pytest.mark.parametrize("layout", ["nemo", "kv"])
@pytest.mark.parametrize("name", STREAMABLE)
@torch.inference_mode()
def test_chunks_give_the_whole_clip(name: str, layout: StreamLayout) -> None:
    model = streamable_model(name)
    step = make_step(model, layout)
    factor, (_, first) = step.geometry.subsampling_factor, step.geometry.window(0)
    features = torch.randn(first + 9 * step.geometry.shift_frames + 3, model.config.n_mels)
    lengths = {1, factor, factor + 1, len(features)}
    for number in (0, 1, 2):
        stop = step.geometry.window(number)[1]
        lengths |= {stop - 1, stop, stop + 1, stop + factor - 1}
    for n_frames in sorted(n for n in lengths if n > 0):
        whole, n_valid = model(features[None, :n_frames], torch.tensor([n_frames]))
        whole = whole[0, : int(n_valid)]
        streamed = run_stream(step, features[:n_frames])
        assert len(streamed) == len(whole), n_frames
        torch.testing.assert_close(streamed, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["nemo", "kv"])
@pytest.mark.parametrize("name", ["nemo", "ours", "many heads", "band with look-ahead"])
@torch.inference_mode()
def test_inference_form_streams_the_same(name: str, layout: StreamLayout) -> None:
    model = streamable_model(name)
    step = make_step(model, layout)
    rewritten = to_inference_form(model)
    assert isinstance(rewritten, ConformerCTC)
    assert isinstance(rewritten.encoder.positions, HalfPositions)
    if layout == "kv":  # as a streaming graph has them; the other half of the cases computes them
        geometry = step.geometry
        n_new = geometry.chunk_frames + geometry.ahead_frames
        freeze_stream_positions(rewritten, n_new, geometry.left_frames)
        rewritten.encoder.positions.inverse_frequency.zero_()
    features = torch.randn(6 * step.geometry.shift_frames, N_MELS)
    torch.testing.assert_close(
        run_stream(make_step(rewritten, layout), features), run_stream(step, features), rtol=0, atol=5e-5
    )


@pytest.mark.parametrize(("name", "layout"), [("nemo", "nemo"), ("nemo", "kv"), ("wenet", "nemo")])
@torch.inference_mode()
def test_rows_of_a_batch_are_streams_of_their_own(name: str, layout: StreamLayout) -> None:
    """A row that pauses keeps its state, and goes on as if the pause had not been."""
    step = make_step(streamable_model(name), layout)
    geometry = step.geometry
    clips = torch.randn(2, 12 * geometry.shift_frames, N_MELS)
    alone = [run_stream(step, clip[: geometry.window(5)[1]])[: 6 * geometry.chunk_frames] for clip in clips]
    state, outputs = step.initial_state(2), [[], []]  # type: ignore[var-annotated]
    steps = [0, 0]
    for pause in (None, None, 0, None, 1, 1, None, None, 1, 1):
        # The first windows are shorter than the later ones, so both rows begin together.
        sizes = [geometry.window(number)[1] - geometry.window(number)[0] for number in steps]
        window = torch.zeros(2, max(sizes), N_MELS)
        lens = torch.zeros(2, dtype=torch.int64)
        for row in range(2):
            if row != pause:
                start, stop = geometry.window(steps[row])
                window[row, : stop - start] = clips[row, start:stop]
                lens[row] = stop - start
                steps[row] += 1
        before = state
        log_probs, n_valid, state = step(window, lens, state)
        for row in range(2):
            outputs[row].append(log_probs[row, : int(n_valid[row])])
            if row == pause:
                assert int(n_valid[row]) == 0
                assert all(torch.equal(new[row], old[row]) for new, old in zip(state, before, strict=True))
    for row in range(2):
        assert steps[row] >= 6
        streamed = torch.cat(outputs[row])[: len(alone[row])]
        torch.testing.assert_close(streamed, alone[row], rtol=0, atol=2e-5)


@torch.inference_mode()
def test_state_is_what_nemo_keeps() -> None:
    """Shapes, and frames heard: clamped for relative attention, counted on for absolute positions."""
    step = make_step(streamable_model("nemo"))
    state = step.initial_state(3)
    assert [tuple(t.shape) for t in state] == [(3, 2, 6, 16), (3, 2, 16, 4), (3,)]
    kv = make_step(streamable_model("nemo"), "kv").initial_state()
    assert [tuple(t.shape) for t in kv] == [(1, 8, 6, 8), (1, 2, 4, 16), (1,)]
    wenet = make_step(streamable_model("wenet"))
    assert tuple(wenet.initial_state().channel.shape) == (1, 2, 6, 32)  # keys and values
    for model_step, expected in ((step, [3, 6, 6, 6]), (wenet, [3, 6, 9, 12])):
        current: StreamCaches = model_step.initial_state()
        heard = []
        for number in range(4):
            start, stop = model_step.geometry.window(number)
            _, _, current = model_step(
                torch.randn(1, stop - start, N_MELS), torch.tensor([stop - start]), current
            )
            heard.append(int(current.channel_len))
        assert heard == expected


@pytest.mark.parametrize("right", [0, 1, 6, 13])
@pytest.mark.parametrize("factor", [4, 8])
def test_windows_of_causal_models_are_nemos(right: int, factor: int) -> None:
    """Chunk [1 + s R, s (R + 1)], pre-encode cache s + 1, drop_extra_pre_encoded 2."""
    config = ConformerConfig(
        vocab_size=5, n_mels=N_MELS, subsampling_factor=factor, subsampling_causal=True,
        conv_context="causal", attention_context=(4 * (right + 1), right),
        attention_context_style="chunked_limited",
    )  # fmt: skip
    geometry = geometry_from_config(config, FEATURES)
    assert geometry.first_window_frames == 1 + factor * right
    assert geometry.shift_frames == factor * (right + 1)
    assert geometry.window_frames - geometry.shift_frames == factor + 1
    assert geometry.dropped_frames == 2
    assert geometry.lookahead_ms == right * factor * 10
    for number in range(2 if right == 0 else 1, 5):  # NeMo's buffer index, from which the cache reaches back
        index = 1 + factor * right + (number - 1) * geometry.shift_frames
        assert geometry.window(number) == (index - factor - 1, index + geometry.shift_frames)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_context": None, "attention_context_style": "regular"}, "sees every later frame"),
        ({"attention_context": (4, -1), "attention_context_style": "regular"}, "sees every later frame"),
        ({"attention_context": (-1, 2)}, "limits of 1 or more"),
        ({"attention_context": (0, 2)}, "limits of 1 or more"),
        ({"attention_context": (7, 2)}, "not a whole number of chunks"),
        ({"conv_context": "symmetric"}, "look 4 frames ahead"),
        ({"head": "lstm"}, "lstm has no cache"),
        ({"attention": "rotary"}, "rotary has no cache"),
        ({"conv_norm": "group_norm"}, "group_norm"),
    ],
)
def test_what_cannot_stream_says_why(changes: dict[str, Any], reason: str) -> None:
    config = ConformerConfig(**{"vocab_size": 5, "conv_context": "causal", **CHUNKED, **changes})
    assert reason in str(why_not_streamable(config, FEATURES))
    with pytest.raises(ConfigError, match="cannot stream"):
        geometry_from_config(config, FEATURES)


def test_features_normalized_over_the_clip_cannot_stream() -> None:
    config = ConformerConfig(vocab_size=5, conv_context="causal", **CHUNKED)
    assert why_not_streamable(config, FEATURES) is None
    whole = dataclasses.replace(FEATURES, normalize="per_feature")
    assert "per_feature" in str(why_not_streamable(config, whole))
