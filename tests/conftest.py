"""Fixtures that several test folders share: where things are, real dev clips, a random bundle.

Anything that needs speech from outside the repository asks for `shared_dir` (or a fixture built on
it) and is skipped, with the reason, where that folder is missing. What is embedded in the package
is asserted on, never skipped.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from edge_asr.manifest import Utterance, read_manifest

REPOSITORY = Path(__file__).resolve().parents[1]

# A deadline would judge how busy the machine is, not the code.
settings.register_profile("edge-asr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edge-asr")


@pytest.fixture(autouse=True)
def logging_as_at_the_start() -> None:
    """Commands called in this process, by tests or session fixtures before, leave their levels behind."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("edge_asr").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the work tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of speech and golden files beside the repository (or $EDGE_ASR_SHARED)."""
    folder = Path(os.environ.get("EDGE_ASR_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared speech and golden files, and there is no folder {folder}/data")
    return folder


@pytest.fixture(scope="session")
def an4_dev(shared_dir: Path) -> tuple[Utterance, ...]:
    """The 92 utterances of AN4 dev: spelled letters, digits, names, commands (4.3 minutes)."""
    return read_manifest(shared_dir / "data" / "an4_dev.jsonl").utterances


@pytest.fixture(scope="session")
def librispeech_dev(shared_dir: Path) -> tuple[Utterance, ...]:
    """The 25 utterances of LibriSpeech dev: read sentences (5.0 minutes)."""
    return read_manifest(shared_dir / "data" / "librispeech_dev.jsonl").utterances


@pytest.fixture(scope="session")
def sample_path() -> Path:
    """The sound file that ships inside the package; its text stands beside it."""
    path = REPOSITORY / "edge_asr" / "models" / "samples" / "robot_commands.flac"
    assert path.is_file(), f"the embedded sample {path} is missing from the work tree"
    return path


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a very small model with random weights (seed 0): its text means nothing."""
    import torch

    from edge_asr.checkpoints.native import save_checkpoint
    from edge_asr.feature_config import FeatureConfig
    from edge_asr.model import ConformerConfig, ConformerCTC
    from edge_asr.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz' ")
    config = ConformerConfig.from_preset(
        "tiny", vocab_size=len(vocabulary), d_model=32, n_layers=2, subsampling_channels=16
    )
    folder = tmp_path_factory.mktemp("random") / "checkpoint"
    save_checkpoint(
        folder,
        model=ConformerCTC(config).eval(),
        features=FeatureConfig.from_preset("nemo"),
        vocabulary=vocabulary,
        provenance={"what": "random weights for tests", "seed": 0},
    )
    return folder


@pytest.fixture(scope="session")
def random_bundle(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random_checkpoint`, exported and proven once a test run by `edge-asr export`."""
    import numpy as np
    import soundfile
    from click.testing import CliRunner

    from edge_asr.cli.main import cli

    folder = tmp_path_factory.mktemp("random")
    (folder / "clips").mkdir()
    noise = np.random.default_rng(0).normal(0.0, 0.1, 24_000).astype(np.float32)
    soundfile.write(folder / "clips" / "noise.wav", noise, 16_000)
    arguments = ["export", str(random_checkpoint), "-o", str(folder / "bundle")]
    result = CliRunner().invoke(cli, [*arguments, "--clips", str(folder / "clips")])
    assert result.exit_code == 0, result.output
    return folder / "bundle"


@pytest.fixture(scope="session")
def streaming_bundle(
    random_checkpoint: Path, sample_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`random_checkpoint`, exported once a test run with chunks of 320 ms and 640 ms to their left."""
    from edge_asr.export import CasePlan, StreamingOptions, export_bundle

    folder = tmp_path_factory.mktemp("streaming") / "bundle"
    export_bundle(
        random_checkpoint,
        folder,
        streaming=StreamingOptions(chunk_ms=320, left_context_ms=640),
        clips=[sample_path],
        plan=CasePlan(random_lengths=1, max_random_s=2.0, max_batch=3),
    )
    return folder
