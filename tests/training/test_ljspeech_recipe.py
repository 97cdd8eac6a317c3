"""The recipe of the LJSpeech decoders splits a folder as it says, and such a folder trains as it is."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import load_config
from edge_asr.training.run import train

RECIPE = Path(__file__).parents[2] / "scripts" / "recipes" / "ljspeech_decoders"


@pytest.fixture
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ljspeech_recipe", RECIPE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ljspeech(tmp_path: Path) -> Path:
    """A folder of 34 clips: metadata.csv (id|text|normalized text) and wavs/, at 22 050 Hz."""
    folder = tmp_path / "LJSpeech-1.1"
    (folder / "wavs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(1, 35):
        name = f"LJ001-{number:04}"
        soundfile.write(folder / "wavs" / f"{name}.wav", 0.1 * rng.standard_normal(22_050), 22_050)
        lines.append(f"{name}|Number {number}.|number {'abcd'[number % 4]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_the_split_leaves_out_what_others_transcribe(
    recipe: ModuleType, ljspeech: Path, tmp_path: Path
) -> None:
    written = recipe.split(ljspeech, tmp_path / "data")
    ids = {
        name: [Path(json.loads(line)["audio_filepath"]).stem for line in path.read_text().splitlines()]
        for name, path in written.items()
    }
    assert {name: len(found) for name, found in ids.items()} == {"train": 22, "dev": 2, "test": 2}
    everything = [one for found in ids.values() for one in found]
    assert sorted(everything) == [f"LJ001-{number:04}" for number in range(9, 35)]
    assert ids["dev"] == ["LJ001-0014", "LJ001-0026"]


def test_every_run_of_the_recipe_is_a_valid_configuration(recipe: ModuleType) -> None:
    for name, changes in recipe.RUNS.items():
        config = load_config(RECIPE / "train.yaml", {"run_dir": name, **changes})
        assert config.decoder.kind is not None
        assert config.optim.max_steps is not None


@pytest.mark.slow
def test_an_ljspeech_folder_trains_as_it_is(make_config: Callable[..., TrainConfig], ljspeech: Path) -> None:
    config = make_config(
        data={"train": [{"path": str(ljspeech)}], "dev": [], "cache_dir": str(ljspeech / "cache")},
        decoder={"kind": "recurrent", "n_heads": 2},
        optim={"max_steps": 1},
    )
    assert train(config, quiet=True)["step"] == 1
