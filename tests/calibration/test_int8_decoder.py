"""INT8 of an attention decoder: near float32, and only where rescoring loses no more than the budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.writer import write_model
from edge_asr.calibration import Budget, Int8Options, decoders
from edge_asr.calibration.calibration_set import CalibrationSet
from edge_asr.calibration.decoders import make_int8_decoder, quantize_steps
from edge_asr.graph.decoder import load_directions
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.int8_report import int8_decoder_line
from edge_asr.proof.stages import Stages
from edge_asr.runtime import Recognizer, rescoring_decoder
from edge_asr.runtime.decoding.attention.network import OnnxDecoder
from edge_asr.runtime.decoding.attention.rescoring import ScoreWeights


@pytest.fixture
def make(joint_bundle: Path, sample_path: Path, tmp_path: Path) -> Any:
    """`make(texts, **budget)`: judge INT8 of the random model's decoder by seconds of the sample."""
    bundle = Bundle.load(joint_bundle)
    waveform, rate = soundfile.read(sample_path, dtype="float32")
    rows = []
    for n in range(3):
        soundfile.write(tmp_path / f"{n}.wav", waveform[n * rate : (n + 2) * rate], rate)
        rows.append(f'{{"audio_filepath": "{n}.wav", "duration": 2.0, "text": "go there"}}\n')
    manifest = tmp_path / "speech.jsonl"
    manifest.write_text("".join(rows))
    inputs = ProofInputs(
        cases=[],
        features=bundle.info.features,
        vocabulary=bundle.vocabulary,
        output_frames=bundle.info.output_frames,
    )

    def judge(*, has_texts: bool = True, **budget: float) -> decoders.Int8Decoder:
        nothing = CalibrationSet(clips=(), manifests=(), seed=0, minutes_asked=1.0, sample_rate=16_000)
        return make_int8_decoder(
            load_directions(bundle),
            onnx.load(bundle.artifact_path("fp32")),
            ScoreWeights(ctc=0.3, reverse=0.3),
            Int8Options(evaluation=(manifest,) if has_texts else (), budget=Budget(**budget)),
            nothing,
            inputs,
            Stages(None),
        )

    return judge


def test_int8_is_near_float32(joint_bundle: Path) -> None:
    bundle = Bundle.load(joint_bundle)
    float32, _ = load_directions(bundle)
    int8 = dataclasses.replace(float32, steps=quantize_steps(float32.steps))
    assert int8.steps.ByteSize() < 0.8 * float32.steps.ByteSize()
    encoded = np.random.default_rng(0).standard_normal((30, 32)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, float32.n_tokens, (3, 8))
    with float32.open() as expected, int8.open() as given:
        networks: list[OnnxDecoder] = [expected, given]
        log_probs = [n.advance(tokens, n.start(3), n.attend(encoded))[0] for n in networks]
    error = np.abs(log_probs[0] - log_probs[1]).max()
    assert 0 < error < 0.2


def test_a_decoder_within_the_budget_is_shipped(make: Any, joint_bundle: Path, tmp_path: Path) -> None:
    made = make(max_wer_loss=1.0)
    assert made.refusal is None
    assert len(made.steps) == 2
    assert (made.loss.n_clips, made.loss.n_words) == (3, 6)
    assert "Rescoring of 3 clips: WER" in int8_decoder_line(made.to_dict())
    bundle = Bundle.load(joint_bundle)
    folder = tmp_path / "written"
    folder.mkdir()
    write_model(folder, onnx.load(bundle.artifact_path("fp32")), "fp32", "fp32")
    info = made.write(folder, bundle.decoder)
    assert info.left.int8 is not None
    assert info.right is not None
    assert [a.file for a in info.artifacts if a.precision == "int8"] == [
        "decoder.int8.onnx",
        "right_decoder.int8.onnx",
    ]


def test_a_decoder_over_the_budget_stays_float32(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make(max_wer_loss=1.0).loss
    worse = dataclasses.replace(loss, wer_reference=0.1, wer_candidate=0.12)
    monkeypatch.setattr(decoders, "_measure", lambda *arguments: worse)
    made = make(max_wer_loss=0.01)
    assert made.steps == ()
    assert made.refusal == (
        "the decoder stays float32: in INT8 rescoring has a WER loss of 2.00 points, 1 are allowed"
    )
    assert int8_decoder_line(made.to_dict()).startswith("The decoder stays float32: ")


def test_without_a_text_the_decoder_stays_float32(make: Any) -> None:
    made = make(has_texts=False)
    assert (made.steps, made.loss) == ((), None)
    assert "no clip has a text to judge INT8 by; give --evaluate" in made.refusal


def test_the_runtime_takes_it_with_the_int8_encoder(joint_bundle: Path) -> None:
    """Only if it was measured to be faster; here there is none."""
    bundle = Bundle.load(joint_bundle)
    left = bundle.decoder.left
    slow = dataclasses.replace(left.steps, precision="int8", cpu_time_over_fp32=1.2)
    fast = dataclasses.replace(left.steps, precision="int8", cpu_time_over_fp32=0.7)
    for int8, wanted in ((None, "fp32"), (slow, "fp32"), (fast, "int8")):
        graphs = dataclasses.replace(left, int8=int8)
        assert OnnxDecoder.load(bundle, graphs, precision="int8").precision == wanted
        assert OnnxDecoder.load(bundle, graphs, precision="fp32").precision == "fp32"
    with Recognizer.load(joint_bundle, decoder=rescoring_decoder(), num_threads=1) as recognizer:
        assert recognizer.new_decoder().kind is None
