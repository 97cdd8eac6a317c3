"""`--decoder rescoring` and `attention`, on a bundle with a decoder of random weights, and on one without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_asr.runtime import Recognizer, attention_decoder, rescoring_decoder

#: A process that has no PyTorch, no ONNX library and none of what exports.
WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript") or name == "edge_asr.export":
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
from edge_asr.cli.main import main
main()
"""


def test_both_decoders_transcribe_without_torch(joint_bundle: Path, sample_path: Path) -> None:
    texts = {}
    for decoder in (rescoring_decoder(), attention_decoder(ctc_weight=0.8, beam_size=2)):
        with Recognizer.load(joint_bundle, decoder=decoder, num_threads=1) as recognizer:
            texts[decoder.kind] = recognizer.transcribe_file(sample_path).text
    assert all(texts.values())
    for kind, options in (("rescoring", []), ("attention", ["--ctc-weight", "0.8", "--beam-size", "2"])):
        arguments = ["transcribe", str(sample_path), "-m", str(joint_bundle), "--decoder", kind, *options]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments, "--threads", "1"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{texts[kind]}\n"


def test_weights_change_what_is_found(joint_bundle: Path, sample_path: Path, run: Any) -> None:
    """All of CTC is the beam search; the words still have times in order."""
    command = ("transcribe", sample_path, "-m", joint_bundle, "--threads", "1")
    beam = run(*command, "--decoder", "beam").stdout
    assert run(*command, "--decoder", "rescoring", "--ctc-weight", "1").stdout == beam
    reverse = run(*command, "--decoder", "rescoring", "--ctc-weight", "0", "--reverse-weight", "1").stdout
    forward = run(*command, "--decoder", "rescoring", "--ctc-weight", "0", "--reverse-weight", "0").stdout
    assert len({beam, reverse, forward}) > 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--ctc-weight", "0.3"), "ctc_weight is 0.3, which belongs to the decoder rescoring or attention"),
        (("--decoder", "beam", "--ctc-weight", "0.3"), "ctc_weight is 0.3, which belongs to the decoder"),
        (
            ("--decoder", "attention", "--reverse-weight", "0.3"),
            "reverse_weight is 0.3, which belongs to the decoder rescoring",
        ),
        (("--decoder", "rescoring", "--ctc-weight", "1.5"), "1.5 is not in the range 0<=x<=1"),
        (("--decoder", "rescoring", "--reverse-weight", "nan"), "nan is not a finite number"),
        (("--decoder", "rescoring", "--beam-size", "0"), "0 is not in the range 1<=x<=1024"),
    ],
)
def test_options_that_contradict(
    run: Any, sample_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    result = run("transcribe", sample_path, *options)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


@pytest.mark.parametrize("kind", ["rescoring", "attention"])
@pytest.mark.parametrize("command", [("transcribe",), ("evaluate",)])
def test_a_bundle_without_a_decoder_is_one_sentence(
    run: Any, sample_path: Path, tmp_path: Path, kind: str, command: tuple[str]
) -> None:
    given = sample_path
    if command == ("evaluate",):
        given = tmp_path / "m.jsonl"
        given.write_text(f'{{"audio_filepath": "{sample_path}", "text": "go"}}\n')
    result = run(*command, given, "--decoder", kind)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "has no attention decoder, which the decoders rescoring and attention need; choose greedy" in line
