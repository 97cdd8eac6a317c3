"""Makes the sample of real speech that ships with tiny-en: clips of dev sets, one after the other.

    python scripts/recipes/tiny_en/sample.py an4/an52-mmaf-b.flac librispeech/163-121908-0000.flac \\
        --clips ../shared/data/an4_dev.jsonl --clips ../shared/data/librispeech_dev.jsonl

The demo transcribes it. It is refused unless the model hears every word right in each precision, offline and
in its stream. What this file does not do: choose clips.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import soundfile

from edge_asr.atomic import write_file
from edge_asr.audio import read_audio
from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.errors import ConfigError, EdgeAsrError, GateError
from edge_asr.manifest import Utterance, read_manifest
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.self_test import stream_log_probs
from edge_asr.runtime.streaming_model import StreamingModel

SAMPLE_NAME = "real_speech"
RATE = 16_000
PAUSE_S = 0.8
#: What may be given on, by the name of the manifest.
SOURCES = {
    "an4_dev": "CMU AN4 (Carnegie Mellon University; BSD-like license)",
    "librispeech_dev": "LibriSpeech train-clean-100 (Vassil Panayotov and others; CC BY 4.0)",
    "librispeech5_dev": "Mini LibriSpeech, train-clean-5 (Vassil Panayotov and others; CC BY 4.0)",
    "commonvoice_dev": "Common Voice (Mozilla and its contributors; CC0)",
}


def make_sample(ids: Sequence[str], manifests: Sequence[Path], folder: Path) -> Path:
    """Write the clips of these ids, a pause between them, with text and README.md; return the sound file.

    Raises:
        ConfigError: an id is in none of the manifests, or in one whose license is not known here.
    """
    known: dict[str, tuple[str, Utterance]] = {}
    for manifest in manifests:
        known |= {u.id: (manifest.stem, u) for u in read_manifest(manifest).utterances}
    for one in ids:
        if one not in known:
            names = ", ".join(manifest.name for manifest in manifests)
            raise ConfigError(f"there is no clip {one} in {names}; give the id of one")
        if known[one][0] not in SOURCES:
            raise ConfigError(
                f"{one} is of {known[one][0]}, whose license is not known; take a clip of "
                f"{', '.join(SOURCES)}, or add it to SOURCES in sample.py"
            )
    chosen = [known[one] for one in ids]
    pause = np.zeros(round(PAUSE_S * RATE), np.float32)
    parts = [part for _, u in chosen for part in (read_audio(u.audio_path, RATE), pause)]
    path = folder / f"{SAMPLE_NAME}.flac"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate(parts[:-1]), RATE, format="FLAC", subtype="PCM_16")
    write_file(path.with_suffix(".txt"), " ".join(u.text for _, u in chosen) + "\n")
    lines = [f"- {u.id}: {SOURCES[source]}" for source, u in chosen]
    write_file(
        folder / "README.md",
        "# Samples\n\n`robot_commands.flac` was synthesized (Kokoro-82M, Apache-2.0). "
        f"`{path.name}` is real speech,\nof speakers that `tiny-en` was not trained on, with pauses of "
        f"{PAUSE_S:g} s between the clips:\n\n" + "\n".join(lines) + "\n",
    )
    return path


def check_sample(sample: Path, bundle: Bundle) -> None:
    """Refuse a sample that the model does not hear right, word by word.

    Raises:
        GateError: what was heard in which form of the model.
    """
    said = sample.with_suffix(".txt").read_text("utf-8").strip()
    waveform = read_audio(sample, bundle.info.features.sample_rate)
    heard = {}
    for artifact in bundle.info.artifacts:
        options = {"precision": artifact.precision, "backend": "cpu", "num_threads": 1}
        with Recognizer.load(bundle.path, **options) as recognizer:
            heard[artifact.precision] = recognizer.transcribe_file(sample).text
    for artifact in () if bundle.info.streaming is None else bundle.info.streaming.artifacts:
        model = StreamingModel.load(bundle, precision=artifact.precision, num_threads=1)
        log_probs = stream_log_probs(model, waveform, bundle.info.features)
        ids = greedy_decode(log_probs, bundle.info.blank_id).ids.tolist()
        heard[f"{artifact.precision} stream"] = bundle.vocabulary.decode(ids)
    wrong = [f"{form} hears {text!r}" for form, text in heard.items() if text.strip() != said]
    if wrong:
        raise GateError(f"the sample says {said!r}; {'; '.join(wrong)}; choose other clips")


def install_sample(ids: Sequence[str], manifests: Sequence[Path], bundle: Bundle, folder: Path) -> None:
    """Put the sample into a folder if the bundle hears it right, else end with exit code 3."""
    with tempfile.TemporaryDirectory() as temporary:
        sample = make_sample(ids, manifests, Path(temporary))
        try:
            check_sample(sample, bundle)
        except GateError as error:
            print(f"no sample: {error}", file=sys.stderr)
            sys.exit(3)
        shutil.copytree(temporary, folder, dirs_exist_ok=True)
    print(f"{folder / sample.name}: {soundfile.info(folder / sample.name).duration:.1f} s")


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--clips", multiple=True, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--models", type=click.Path(path_type=Path), default=EMBEDDED_MODELS, show_default=True)
def main(ids: tuple[str, ...], clips: tuple[Path, ...], models: Path) -> None:
    """Make the sample of the clips IDS, in this order, for the model that is embedded."""
    try:
        install_sample(ids, clips, Bundle.load(models / "tiny-en" / "bundle"), models / "samples")
    except EdgeAsrError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
