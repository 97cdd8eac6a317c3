"""Fixtures that several test folders share: where things are, real dev clips, models exported once.

Anything that needs speech from outside the repository asks for `shared_dir` (or a fixture built on
it) and is skipped, with the reason, where that folder is missing. What is embedded in the package
is asserted on, never skipped.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from edge_asr.manifest import Utterance, read_manifest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "helpers"))
sys.path.insert(0, str(REPOSITORY / "scripts"))  # for scripts/golden, which judges fixtures of other projects

# A deadline would judge how busy the machine is, not the code.
settings.register_profile("edge-asr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edge-asr")


#: Who asks for one of these waits for an export, a build, a sound server or minutes of real speech.
SLOW_FIXTURES = frozenset(
    {
        "an4_dev",
        "bare",
        "distributions",
        "exported",
        "golden_bundle",
        "joint_bundle",
        "librispeech_dev",
        "needs_virtual_microphone",
        "per_feature_bundle",
        "quick_export",
        "random_bundle",
        "random_bundle_fp16",
        "random_folder",
        "rtx",
        "simplified",
        "streaming_bundle",
        "tiny_en_amax",
        "virtual_microphone",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a slow fixture; `scripts/test --fast` leaves it out."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def logging_as_at_the_start() -> None:
    """Commands called in this process, by tests or session fixtures before, leave their levels behind."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("edge_asr").setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands remember from one run to the next stays among the files of this run."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the work tree."""
    return REPOSITORY


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """`made_once(name, make)`: the path that `make(path)` filled, once for all processes of this run.

    The first process that asks makes it, the others wait for it and find it done. What is in it must not be
    changed: a test that writes works on a copy. A `make` that fails leaves nothing, so the next one tries
    again and fails with its own traceback.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    root.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        path, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                make(path)
                done.touch()
        return path

    return get


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The fixtures that other projects' own code made; its README.md says how."""
    folder = REPOSITORY / "tests" / "data" / "golden"
    if not folder.is_dir():
        pytest.skip("needs tests/data/golden, which the sdist leaves out: take the repository")
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real speech beside the repository (or $EDGE_ASR_SHARED): data/an4_dev.jsonl and the like."""
    folder = Path(os.environ.get("EDGE_ASR_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs real speech, and there is no folder {folder}/data")
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
def speechlike() -> Callable[..., Any]:
    """`make_speechlike(duration_s, seed)`: [S] float32 at 16 kHz."""
    from speechlike import make_speechlike

    return make_speechlike


@pytest.fixture(scope="session")
def sample_path() -> Path:
    """The sound file that ships inside the package; its text stands beside it."""
    path = REPOSITORY / "edge_asr" / "models" / "samples" / "robot_commands.flac"
    assert path.is_file(), f"the embedded sample {path} is missing from the work tree"
    return path


@pytest.fixture(scope="session")
def sample_texts() -> Mapping[str, str]:
    """What the exporter of the embedded model heard in the sample, by precision and as "auto" chooses.

    Tests of commands compare with it, so that other weights, which may hear a word otherwise, leave them be;
    that it is near what was said is the test of tests/runtime/test_self_test.py.
    """
    from edge_asr.runtime.recognizer import Recognizer

    with Recognizer.load(backend="cpu", num_threads=1) as recognizer:
        assert recognizer.bundle is not None
        entry = recognizer.bundle.info.self_test
        precision = recognizer.backend.precision
    assert entry is not None
    texts = {precision: reference["text"] for precision, reference in entry.references.items()}
    return {**texts, "auto": texts[precision]}


@pytest.fixture(scope="session")
def sample_text(sample_texts: Mapping[str, str]) -> str:
    """What `transcribe` prints for the sample."""
    return sample_texts["auto"]


@pytest.fixture(scope="session")
def random_checkpoint(made_once: MadeOnce) -> Path:
    """A checkpoint of a very small model with random weights (seed 0): its text means nothing."""
    return made_once("random-checkpoint", _save_random_checkpoint)


def _save_random_checkpoint(folder: Path, **decoders: Any) -> None:
    import torch

    from edge_asr.checkpoints.native import save_checkpoint
    from edge_asr.feature_config import FeatureConfig
    from edge_asr.model import ConformerConfig, ConformerCTC
    from edge_asr.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz' ")
    config = ConformerConfig.from_preset(
        "tiny", vocab_size=len(vocabulary), d_model=32, n_layers=2, subsampling_channels=16, **decoders
    )
    save_checkpoint(
        folder,
        model=ConformerCTC(config).eval(),
        features=FeatureConfig.from_preset("nemo"),
        vocabulary=vocabulary,
        provenance={"what": "random weights for tests", "seed": 0},
    )


@pytest.fixture(scope="session")
def random_bundle(random_checkpoint: Path, made_once: MadeOnce) -> Path:
    """`random_checkpoint`, exported and proven once a test run by `edge-asr export`."""
    import numpy as np
    import soundfile
    from click.testing import CliRunner

    from edge_asr.cli.main import cli

    def make(folder: Path) -> None:
        (folder / "clips").mkdir(parents=True)
        noise = np.random.default_rng(0).normal(0.0, 0.1, 24_000).astype(np.float32)
        soundfile.write(folder / "clips" / "noise.wav", noise, 16_000)
        arguments = ["export", str(random_checkpoint), "-o", str(folder / "bundle")]
        result = CliRunner().invoke(cli, [*arguments, "--clips", str(folder / "clips")])
        assert result.exit_code == 0, result.output

    return made_once("random-bundle", make) / "bundle"


@pytest.fixture(scope="session")
def joint_checkpoint(made_once: MadeOnce) -> Path:
    """`random_checkpoint` with Transformer decoders in both directions."""
    return made_once("joint-checkpoint", _save_joint_checkpoint)


def _save_joint_checkpoint(folder: Path) -> None:
    from edge_asr.model.decoders import DecoderConfig

    _save_random_checkpoint(
        folder, decoder=DecoderConfig(n_layers=2), right_decoder=DecoderConfig(n_layers=1)
    )


@pytest.fixture(scope="session")
def joint_bundle(joint_checkpoint: Path, sample_path: Path, made_once: MadeOnce) -> Path:
    """`joint_checkpoint`, exported once a test run, with chunks of 320 ms and 640 ms to their left."""
    from edge_asr.export import CasePlan, StreamingOptions, export_bundle

    def make(folder: Path) -> None:
        export_bundle(
            joint_checkpoint,
            folder,
            streaming=StreamingOptions(chunk_ms=320, left_context_ms=640),
            clips=[sample_path],
            plan=CasePlan(random_lengths=1, max_random_s=2.0, max_batch=2),
        )

    return made_once("joint-bundle", make)


@pytest.fixture(scope="session")
def streaming_bundle(random_checkpoint: Path, sample_path: Path, made_once: MadeOnce) -> Path:
    """`random_checkpoint`, exported once a test run with chunks of 320 ms and 640 ms to their left."""
    from edge_asr.export import CasePlan, StreamingOptions, export_bundle

    def make(folder: Path) -> None:
        export_bundle(
            random_checkpoint,
            folder,
            streaming=StreamingOptions(chunk_ms=320, left_context_ms=640),
            clips=[sample_path],
            plan=CasePlan(random_lengths=1, max_random_s=2.0, max_batch=3),
        )

    return made_once("streaming-bundle", make)


@pytest.fixture(scope="session")
def streaming_int8_bundle(streaming_bundle: Path, made_once: MadeOnce) -> Path:
    """`streaming_bundle` with INT8 of both graphs, whatever it loses, on a minute of the embedded speech."""
    from functools import partial

    from edge_asr.calibration import Budget, Int8Options, quantize_bundle, sensitivity
    from edge_asr.calibration.measure import time_graphs
    from edge_asr.export import CasePlan

    def make(folder: Path) -> None:
        anything = Budget(max_wer_loss=1.0, min_agreement=0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sensitivity, "time_graphs", partial(time_graphs, repeats=1))
            quantize_bundle(
                streaming_bundle,
                Int8Options(minutes=1, range_method="minmax", budget=anything),
                output=folder,
                plan=CasePlan(random_lengths=1, max_random_s=2.0, max_batch=2),
            )

    return made_once("streaming-int8-bundle", make)


@pytest.fixture(scope="session")
def golden_bundle(golden_dir: Path, made_once: MadeOnce) -> Callable[[str], Path]:
    """Name of a golden fixture -> its bundle, exported once a test run."""

    def export(name: str) -> Path:
        from golden.compare import QUICK_PLAN
        from golden.decoders import has_decoder
        from golden.fixtures import read_fixture

        from edge_asr.export import export_bundle

        folder = golden_dir / name
        model = folder / "model.nemo" if (folder / "model.nemo").exists() else folder
        clips = sorted(golden_dir.glob("audio_*.flac"))
        decoder = has_decoder(read_fixture(folder, golden_dir))  # others have a decoder that nobody compares
        return made_once(
            f"golden-{name}",
            lambda bundle: export_bundle(model, bundle, decoder=decoder, clips=clips, plan=QUICK_PLAN),
        )

    return export
