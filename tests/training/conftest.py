"""A corpus of sine "words" and a very small model, so that training runs in seconds anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import config_from_dict

SAMPLE_RATE = 16_000
WORDS = {"a": 350.0, "be": 700.0, "cad": 1400.0, "do": 2800.0}


def make_waveform(text: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Each word is 0.25 s of its tone, with 0.1 s of near-silence around it."""
    t = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    silence = np.zeros(int(0.1 * SAMPLE_RATE))
    parts = [silence]
    for word in text.split():
        parts += [0.3 * np.sin(2 * np.pi * WORDS[word] * t), silence]
    waveform = np.concatenate(parts)
    return (waveform + 0.001 * rng.standard_normal(len(waveform))).astype(np.float32)


def write_corpus(folder: Path, n_clips: int, seed: int) -> Path:
    """A JSON Lines manifest of n_clips clips of 1 to 4 words."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(n_clips):
        text = " ".join(rng.choice(list(WORDS), size=int(rng.integers(1, 5))))
        waveform = make_waveform(text, rng)
        soundfile.write(folder / f"{number}.wav", waveform, SAMPLE_RATE)
        duration = len(waveform) / SAMPLE_RATE
        rows.append(json.dumps({"audio_filepath": f"{number}.wav", "duration": duration, "text": text}))
    manifest = folder / f"{folder.name}.jsonl"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


@pytest.fixture(scope="session")
def tone_manifests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train (32 clips) and dev (6 clips) manifests of sine words."""
    folder = tmp_path_factory.mktemp("tones")
    return write_corpus(folder / "tones", 32, 1), write_corpus(folder / "tones_dev", 6, 2)


ConfigDict = dict[str, Any]


@pytest.fixture
def config_dict(tone_manifests: tuple[Path, Path], tmp_path: Path) -> ConfigDict:
    """A configuration of a few small steps, as plain values to be changed by tests."""
    train, dev = tone_manifests
    return {
        "run_dir": str(tmp_path / "run"),
        "seed": 3,
        "model": {
            "preset": "tiny",
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 2,
            "subsampling_channels": 8,
            "subsampling_factor": 4,
            "conv_kernel_size": 5,
            "dropout": 0.1,
        },
        "cmvn_utterances": 8,
        "data": {
            "train": [{"path": str(train)}],
            "dev": [{"path": str(dev)}],
            "cache_dir": str(train.parent / "cache"),
            "max_batch_s": 8.0,
            "n_workers": 0,
            "n_buckets": 2,
        },
        "augment": {"concat_prob": 0.3, "concat_max_s": 3.0, "noise_prob": 0.5, "reverb_prob": 0.3},
        "tokenizer": {"kind": "char"},
        "optim": {"max_steps": 4, "warmup_steps": 2, "schedule": "constant", "ema_decay": 0.9},
        "run": {
            "accelerator": "cpu",
            "n_threads": 1,
            "log_every_steps": 1,
            "eval_every_steps": 0,
            "state_every_steps": 0,
            "state_every_minutes": 0,
            "checkpoint_every_steps": 0,
        },
    }


MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(config_dict: ConfigDict) -> MakeConfig:
    """Build the configuration with sections updated: make_config(optim={"max_steps": 9}, seed=4)."""

    def make(**changes: Any) -> TrainConfig:
        return config_from_dict(merge(config_dict, changes))

    return make


def merge(base: ConfigDict, changes: ConfigDict) -> ConfigDict:
    """`base` with sections updated key by key and plain values replaced."""
    merged = dict(base)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_section else value
    return merged
