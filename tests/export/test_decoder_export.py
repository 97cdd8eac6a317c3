"""The attention decoder of a bundle: its graphs against PyTorch, its proof, and bundles without one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import DecoderGraphs
from edge_asr.checkpoints import load_any
from edge_asr.errors import BundleError
from edge_asr.export.decoders.graph import make_direction
from edge_asr.export.decoders.make import DecoderGraph
from edge_asr.export.decoders.proof import DecoderCase, prove_direction
from edge_asr.export.graphs import ExportedGraphs
from edge_asr.graph.decoder import DirectionGraphs
from edge_asr.model.decoders import DecoderConfig, make_decoder
from edge_asr.runtime.decoding.attention.network import OnnxDecoder
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

ATOL = 1e-5  # float32 of two layers


def test_the_graphs_of_the_bundle_are_those_of_the_checkpoint(
    joint_bundle: Path, joint_checkpoint: Path
) -> None:
    """A step, steps with beams that change places, and whole texts, for one frame and many."""
    bundle, model = Bundle.load(joint_bundle), load_any(joint_checkpoint).build_model()
    assert bundle.decoder.right is not None
    random = np.random.default_rng(0)
    for graphs, decoder in (
        (bundle.decoder.left, model.decoder),
        (bundle.decoder.right, model.right_decoder),
    ):
        network = OnnxDecoder.load(bundle, graphs)
        for n_beams, n_frames in ((1, 1), (4, 50)):
            encoded = random.standard_normal((n_frames, 32)).astype(np.float32)
            tokens = random.integers(0, network.n_tokens, (n_beams, 6))
            tokens[:, 0] = network.sos_id
            memory = network.attend(encoded)
            with torch.no_grad():
                expected, _ = decoder.advance(
                    torch.from_numpy(tokens),
                    decoder.initial_state(n_beams),
                    decoder.cross(torch.from_numpy(encoded)[None]),
                    torch.tensor([n_frames]),
                )
            whole, _ = network.advance(tokens, network.start(n_beams), memory)
            np.testing.assert_allclose(whole, expected, atol=ATOL)
            state, columns = network.start(n_beams), []
            for column in range(tokens.shape[1]):
                log_probs, state = network.advance(tokens[:, column : column + 1], state, memory)
                columns.append(log_probs[:, 0])
            np.testing.assert_allclose(np.stack(columns, axis=1), expected, atol=ATOL)


def test_the_encoder_gives_what_the_decoder_attends_to(joint_bundle: Path, joint_checkpoint: Path) -> None:
    model = load_any(joint_checkpoint).build_model()
    features = np.random.default_rng(0).standard_normal((2, 90, 80)).astype(np.float32)
    lens = np.array([90, 41])
    backend = OnnxRuntimeBackend(joint_bundle / "model.onnx", precision="fp32")
    assert backend.output_names == ("logprobs", "encoded")
    log_probs, encoded = backend.encode(features, lens)
    with torch.no_grad():
        expected, n_valid = model.encode(torch.from_numpy(features), torch.from_numpy(lens))
    for row, n in enumerate(n_valid.tolist()):
        np.testing.assert_allclose(encoded[row, :n], expected[row, :n], atol=ATOL)
    assert np.array_equal(log_probs, backend.log_probs(features, lens))


def test_the_bundle_describes_and_proves_its_decoder(joint_bundle: Path) -> None:
    bundle = Bundle.load(joint_bundle)
    info = bundle.decoder
    assert (info.kind, info.n_tokens, info.sos_id, info.eos_id) == ("transformer", 30, 29, 29)
    assert (info.ctc_weight, info.reverse_weight) == (0.5, 0.3)
    assert info.left.state == ((2, -1, 2, 0, 16), (2, -1, 2, 0, 16))
    report = (joint_bundle / "report.md").read_text()
    for name in ("decoder", "right decoder"):
        assert f"## PyTorch {name} -> ONNX {name}: passed" in report
        assert f"## PyTorch {name} -> ONNX {name}, step by step: passed" in report
    assert "## PyTorch encoder -> ONNX simplified encoder: passed" in report
    assert "encoder -> streaming ONNX encoder: passed" in report


def test_a_decoder_of_other_weights_fails_the_proof(joint_bundle: Path, joint_checkpoint: Path) -> None:
    """And with it the export: no bundle is written, and the exit code is 3."""
    bundle, model = Bundle.load(joint_bundle), load_any(joint_checkpoint).build_model()
    left = bundle.decoder.left
    steps = onnx.load(joint_bundle / left.steps.file)
    weight = max(steps.graph.initializer, key=lambda i: len(i.raw_data))
    values = numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    ids = {name: getattr(bundle.decoder, name) for name in ("n_tokens", "sos_id", "eos_id")}
    graphs = DirectionGraphs(
        cross=onnx.load(joint_bundle / left.cross.file), steps=steps, state=left.state, **ids
    )
    encoded = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    case = DecoderCase(family="batch", name="one", encoded=encoded, tokens=np.array([[29, 3, 4, 5]]))
    proven = prove_direction(model.decoder, graphs, [case], name="decoder")
    assert [step.passed for step in proven] == [False, False]
    made = DecoderGraph(
        kind="transformer", ctc_weight=0.3, reverse_weight=0.0, left=graphs, right=None, steps=proven
    )
    fine = SimpleNamespace(step=SimpleNamespace(passed=True))
    failures = ExportedGraphs(float32=fine, decoder=made).failures  # type: ignore[arg-type]
    assert len(failures) == 2
    assert failures[0].startswith("PyTorch decoder -> ONNX decoder: 1 of 1 cases failed")


def test_a_bundle_without_a_decoder_is_as_before(random_bundle: Path) -> None:
    """Older versions, which refuse unknown keys, read it."""
    assert "decoder" not in json.loads((random_bundle / "bundle.json").read_text())
    assert OnnxRuntimeBackend(random_bundle / "model.onnx", precision="fp32").output_names == ("logprobs",)
    assert list(random_bundle.glob("*decoder*")) == []
    with pytest.raises(BundleError, match="has no attention decoder"):
        _ = Bundle.load(random_bundle).decoder


def test_a_checkpoint_can_leave_its_decoder_out(joint_checkpoint: Path) -> None:
    whole = load_any(joint_checkpoint)
    without = whole.without_decoder()
    features, lens = torch.randn(1, 50, 80), torch.tensor([50])
    model = without.build_model()
    assert model.decoder is model.right_decoder is None
    assert torch.equal(model(features, lens)[0], whole.build_model()(features, lens)[0])


@pytest.mark.slow
def test_a_recurrent_decoder_exports_with_any_number_of_steps() -> None:
    torch.manual_seed(1)
    decoder = make_decoder(DecoderConfig(kind="recurrent", n_heads=2, d_model=16), 24, 9).eval()
    graphs = make_direction(decoder, 24, metadata={}, opset=18)
    assert graphs.state == ((2, -1, 16), (2, -1, 16))
    random = np.random.default_rng(0)
    cases = [
        DecoderCase(
            family="batch",
            name=f"{n_rows} x {n_tokens}",
            encoded=random.standard_normal((n_frames, 24)).astype(np.float32),
            tokens=random.integers(0, 10, (n_rows, n_tokens)),
        )
        for n_rows, n_tokens, n_frames in ((1, 1, 1), (3, 7, 20), (2, 40, 3))
    ]
    steps = prove_direction(decoder, graphs, cases, name="decoder")
    assert [step.passed for step in steps] == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sos_id": 30}, "begins with 30 and ends with 29, and has 30 tokens"),
        ({"ctc_weight": 1.5}, r"ctc_weight of the decoder is 1\.5; it lies from 0 to 1"),
        ({"reverse_weight": -1.0}, "reverse_weight of the decoder"),
    ],
)
def test_a_damaged_record_is_refused(joint_bundle: Path, change: dict[str, Any], message: str) -> None:
    info = Bundle.load(joint_bundle).decoder
    with pytest.raises(BundleError, match=message):
        dataclasses.replace(info, **change)


def test_a_state_without_a_batch_is_refused(joint_bundle: Path) -> None:
    left: DecoderGraphs = Bundle.load(joint_bundle).decoder.left
    for state in (((2, 3),), ((-1, -1),), ((-1, -2),)):
        with pytest.raises(BundleError, match="it needs one -1, the batch"):
            dataclasses.replace(left, state=state)


@pytest.mark.parametrize("file", ["decoder.onnx", "right_decoder_cross.onnx"])
def test_an_altered_decoder_is_refused(joint_bundle: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(joint_bundle, tmp_path / "bundle"))
    path = folder / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{file} .*is not the file that bundle.json describes"):
        Bundle.load(folder)
