"""Train both attention decoders on LJSpeech, one run after the other, and compare them in one plot.

LJSpeech (a folder with metadata.csv and wavs/, or a manifest) is split by number: of twelve clips ten are for
training, one for dev and one for test. The first two runs train a decoder over the encoder of tiny-en as it
is. The other two go on from the transformer's and train the encoder too, with CTC and without.
What this file does not do: set the shape or the optimizer (train.yaml), write the results page.

    python scripts/recipes/ljspeech_decoders/make.py LJSpeech-1.1 -o runs/ljspeech \
        --train an4_train.jsonl --dev an4_dev.jsonl --test librispeech_dev.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edge_asr.manifest import Utterance, read_manifest
from edge_asr.training.config_io import load_config
from edge_asr.training.curves import compare_runs
from edge_asr.training.run import train

#: Clips that other tests of this project transcribe.
HELD_OUT = {f"LJ001-{number:04}" for number in range(1, 9)}
#: What each run has in place of train.yaml's keys.
TOGETHER = {
    "decoder.freeze_encoder": False,
    "optim.lr": 0.0005,
    "optim.warmup_steps": 20,
    "optim.max_steps": 100,
    "run.eval_every_steps": 50,
    "run.log_every_steps": 10,
}
RUNS: dict[str, dict[str, Any]] = {
    "frozen-transformer": {"decoder.kind": "transformer", "decoder.n_layers": 2},
    "frozen-recurrent": {"decoder.kind": "recurrent", "decoder.n_layers": 1},
    "joint": {**TOGETHER, "decoder.ctc_weight": 0.3},
    "attention-only": {**TOGETHER, "decoder.ctc_weight": 0.0},
}


def split(corpus: Path, folder: Path) -> dict[str, Path]:
    """Write the manifests of the three parts, and return them by name."""
    parts: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    kept = (one for one in read_manifest(corpus).utterances if one.audio_path.stem not in HELD_OUT)
    for number, utterance in enumerate(kept):
        parts[{5: "dev", 11: "test"}.get(number % 12, "train")].append(utterance)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, utterances in parts.items():
        rows = [
            {
                "audio_filepath": str(one.audio_path.resolve()),
                "text": one.text,
                **({} if one.duration_s is None else {"duration": one.duration_s}),
            }
            for one in utterances
        ]
        written[name] = folder / f"lj_{name}.jsonl"
        written[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return written


def main() -> int:
    """Split, train what is not trained yet, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ljspeech", type=Path, help="LJSpeech folder, or a manifest of its clips")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for data, runs and the plot")
    for part in ("train", "dev", "test"):
        parser.add_argument(f"--{part}", type=Path, action="append", default=[], help="one more manifest")
    parser.add_argument("--steps", type=int, help="fewer steps for all runs")
    arguments = parser.parse_args()
    written = split(arguments.ljspeech, arguments.output / "data")
    data = {
        f"data.{part}": [{"path": str(path.resolve())} for path in (written[part], *getattr(arguments, part))]
        for part in ("train", "dev", "test")
    }
    folder = arguments.output.resolve()
    for name, changes in RUNS.items():
        values = {"run_dir": str(folder / name), "data.cache_dir": str(folder / "cache"), **data, **changes}
        if not changes.get("decoder.freeze_encoder", True):
            values["init_from"] = str(folder / "frozen-transformer" / "best")
        if arguments.steps is not None:
            values["optim.max_steps"] = arguments.steps
        if not (folder / name / "summary.json").exists():
            train(load_config(Path(__file__).with_name("train.yaml"), values))
    compare_runs([folder / name for name in RUNS], folder / "curves.png")
    print(folder / "curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
