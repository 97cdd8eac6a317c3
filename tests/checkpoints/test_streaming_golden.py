"""NeMo's cache-aware steps and WeNet's chunks against golden files made by their own code.

Each step in PyTorch from the original's input, with the caches after the last, and through the exported graph
from the sound file; bars in scripts/golden/compare.py (log-probs 1e-3, through the runtime 2e-3).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from golden.compare import BARS
from golden.fixtures import find_fixtures
from golden.streaming import StreamResult, compare_streams, has_streams
from golden_checks import arrays_of, golden_folder

from edge_asr.checkpoints import load_any
from edge_asr.model.streamable import geometry_from_config
from edge_asr.model.streaming import StreamingStep


def stream(golden_dir: Path, name: str, *, with_runtime: bool) -> StreamResult:
    (fixture,) = find_fixtures(golden_folder(golden_dir, name))
    assert fixture.checkpoint is not None
    assert has_streams(fixture)
    return compare_streams(fixture, load_any(fixture.checkpoint), with_runtime=with_runtime)


@pytest.mark.parametrize("name", ["nemo-fastconformer-streaming", "wenet-u2pp"])
def test_steps_and_caches_in_pytorch(golden_dir: Path, name: str) -> None:
    result = stream(golden_dir, name, with_runtime=False)
    assert result.torch is not None
    assert result.cache is not None
    assert result.torch < BARS.stream_torch
    assert result.cache < BARS.stream_cache


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nemo-fastconformer-streaming", "wenet-u2pp"])
def test_steps_of_the_exported_graph_from_the_sound_file(golden_dir: Path, name: str) -> None:
    result = stream(golden_dir, name, with_runtime=True)
    assert result.runtime is not None
    assert result.whole is not None
    assert result.runtime < BARS.stream_runtime
    assert result.whole < BARS.stream_whole
    assert result.tokens
    assert any(key.endswith("_logp0") for key in result.dumped)


@torch.inference_mode()
def test_without_look_ahead_nemos_second_window_is_not_the_clips(golden_dir: Path) -> None:
    """Why ours begins where the clip does: NeMo puts 8 frames of zeros there, the offline model pads.

    The golden weights with look-ahead 0. Fed as NeMo feeds it, the step differs from the offline model until
    those frames have left the left context of every layer; fed with our windows it never does.
    """
    folder = golden_folder(golden_dir, "nemo-fastconformer-streaming")
    checkpoint = load_any(folder / "model.nemo")
    config = dataclasses.replace(checkpoint.model_config, attention_context=(7, 0))
    model = dataclasses.replace(checkpoint, model_config=config).build_model()
    step = StreamingStep(model, geometry_from_config(config, checkpoint.features))
    features = torch.from_numpy(arrays_of(folder)["clip2_feat"][0])
    whole = model(features[None], torch.tensor([len(features)]))[0][0]
    padded = torch.cat((torch.zeros(8, features.shape[1]), features))  # frame i is in row i + 8
    errors: dict[str, list[float]] = {"NeMo": [], "ours": []}
    for feeder, found in errors.items():
        state = step.initial_state()
        for number in range(len(whole)):
            start, stop = step.geometry.window(number)
            window = features[start:stop]
            if feeder == "NeMo" and number > 0:
                window = padded[8 * (number - 1) : 8 * (number - 1) + 17]
            log_probs, _, state = step(window[None], torch.tensor([len(window)]), state)
            found.append(float((log_probs[0, 0] - whole[number]).abs().max()))
    assert max(errors["ours"]) < 1e-4
    assert errors["NeMo"][0] < 1e-4
    assert errors["NeMo"][1] == max(errors["NeMo"]) > 0.05
    assert errors["NeMo"][-1] < 1e-4


def test_fixtures_without_streams_are_told_apart(golden_dir: Path) -> None:
    (fixture,) = find_fixtures(golden_folder(golden_dir, "nemo-fastconformer-bpe"))
    assert not has_streams(fixture)
