"""NeMo's cache-aware steps and WeNet's chunks against golden files made by their own code.

Each step in PyTorch from the original's input, with the caches after the last, and through the exported graph
from the sound file; bars in scripts/golden/compare.py (log-probs 1e-3, through the runtime 2e-3).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from golden.compare import BARS
from golden.fixtures import find_fixtures
from golden.streaming import StreamResult, compare_streams, has_streams
from golden_checks import golden_folder

from edge_asr.checkpoints import load_any


def stream(shared_dir: Path, name: str, *, with_runtime: bool) -> StreamResult:
    (fixture,) = find_fixtures(golden_folder(shared_dir, name))
    assert fixture.checkpoint is not None
    assert has_streams(fixture)
    return compare_streams(fixture, load_any(fixture.checkpoint), with_runtime=with_runtime)


@pytest.mark.parametrize("name", ["nemo-fastconformer-streaming", "wenet-u2pp"])
def test_steps_and_caches_in_pytorch(shared_dir: Path, name: str) -> None:
    result = stream(shared_dir, name, with_runtime=False)
    assert result.torch is not None
    assert result.cache is not None
    assert result.torch < BARS.stream_torch
    assert result.cache < BARS.stream_cache


@pytest.mark.parametrize(
    "name", ["nemo-fastconformer-streaming", pytest.param("wenet-u2pp", marks=pytest.mark.slow)]
)
def test_steps_of_the_exported_graph_from_the_sound_file(shared_dir: Path, name: str) -> None:
    result = stream(shared_dir, name, with_runtime=True)
    assert result.runtime is not None
    assert result.whole is not None
    assert result.runtime < BARS.stream_runtime
    assert result.whole < BARS.stream_whole
    assert result.tokens
    assert any(key.endswith("_logp0") for key in result.dumped)


def test_fixtures_without_streams_are_told_apart(shared_dir: Path) -> None:
    (fixture,) = find_fixtures(golden_folder(shared_dir, "nemo-fastconformer-bpe"))
    assert not has_streams(fixture)
