"""A Triton model repository: its configurations are Triton's, and its models give what `transcribe` gives.

No Triton server is here: fake_triton.py stands in for it, with the real graphs in onnxruntime.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from fake_triton import FakeTriton, load_messages

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.cli.main import cli
from edge_asr.export.triton import Word, format_pbtxt, write_triton_repository
from edge_asr.runtime.engine.sidecar import EngineTensor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.streaming_model import StreamingModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from pypi import package_folder

F32Array = npt.NDArray[np.float32]
REQUIREMENT = "tritonclient==2.73.0"
NAMES = ["tiny-en", "tiny-en_fp32", "tiny-en_int8", "tiny-en_stream_int8"]


@pytest.fixture(scope="session")
def messages(pytestconfig: pytest.Config) -> ModuleType:
    return load_messages(package_folder(pytestconfig, REQUIREMENT))


@pytest.fixture(scope="module")
def repository_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert write_triton_repository(Bundle.load("tiny-en"), folder) == NAMES
    return folder


@pytest.fixture
def server(repository_folder: Path, messages: ModuleType) -> FakeTriton:
    return FakeTriton(repository_folder, messages)


@pytest.fixture(scope="session")
def speech(sample_path: Path) -> F32Array:
    return read_audio(sample_path)


def load_text_model(server: FakeTriton, monkeypatch: pytest.MonkeyPatch, name: str = "tiny-en") -> Any:
    """Run the model.py of the repository, as the Python backend does."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server.pb_utils())
    spec = importlib.util.spec_from_file_location("model", server.folder / name / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize(server.arguments(name))
    return model


def test_protobuf_text() -> None:
    message = {
        "a": 'x"\n',
        "b": Word("X"),
        "c": [1, 2],
        "d": {"e": True, "f": {}},
        "g": None,
        "h": [{"i": 0.5}],
    }
    text = r'a: "x\"\n" b: X c: 1 c: 2 d { e: true f { } } h { i: 0.5 }'
    assert format_pbtxt(message).split() == text.split()


def test_every_model_has_its_files_versions_and_warm_up(server: FakeTriton) -> None:
    assert sorted(server.configs) == sorted(NAMES)
    for name, config in server.configs.items():
        assert config.name == name
        assert config.version_policy.latest.num_versions == 1
        file = {"python": "model.py", "onnxruntime": "model.onnx"}[config.backend]
        assert (server.folder / name / "1" / file).is_file()
        (warm_up,) = config.model_warmup
        inputs = {one.name: one for one in config.input}
        for key, one in warm_up.inputs.items():
            assert one.data_type == inputs[key].data_type
            assert len(one.dims) == len(inputs[key].dims)
        assert {one.name for one in config.input if not one.optional} == set(warm_up.inputs)


@pytest.mark.parametrize("name", ["tiny-en_fp32", "tiny-en_int8", "tiny-en_stream_int8"])
def test_warm_ups_run(name: str, server: FakeTriton) -> None:
    (warm_up,) = server.configs[name].model_warmup
    inputs = {}
    for key, one in warm_up.inputs.items():
        dtype = np.float32 if one.data_type == server.messages.TYPE_FP32 else np.int64
        inputs[key] = np.zeros((1, *one.dims), dtype)
        if one.input_data_file:
            data = (server.folder / name / "warmup" / one.input_data_file).read_bytes()
            inputs[key] = np.frombuffer(data, dtype).reshape(1, *one.dims)
    outputs = server.infer(name, inputs, start=True)
    assert outputs["logprobs"].shape[0] == 1


def test_batching(server: FakeTriton) -> None:
    for name in ("tiny-en_fp32", "tiny-en_int8"):
        assert list(server.configs[name].dynamic_batching.preferred_batch_size) == [4, 8]
        assert server.configs[name].max_batch_size == 16
    assert server.configs["tiny-en"].HasField("dynamic_batching")
    stream = server.configs["tiny-en_stream_int8"]
    assert stream.sequence_batching.WhichOneof("strategy_choice") == "oldest"
    assert not stream.HasField("dynamic_batching")
    assert [state.input_name for state in stream.sequence_batching.state] == [
        "cache_last_channel", "cache_last_time", "cache_last_channel_len",
    ]  # fmt: skip


def load_plain(precision: str) -> Recognizer:
    """Load what `transcribe --precision` runs; in int8 the file, not its copy for CPUs."""
    if precision == "fp32":
        return Recognizer.load("tiny-en", precision=precision, backend="cpu", num_threads=1)
    bundle = Bundle.load("tiny-en")
    return Recognizer(
        OnnxRuntimeBackend(bundle.path / "model.int8.onnx", precision=precision, num_threads=1),
        features=bundle.info.features,
        vocabulary=bundle.vocabulary,
        subsampling_factor=bundle.info.subsampling_factor,
        first_output_frames=bundle.info.first_output_frames,
        bundle=bundle,
    )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_text_is_that_of_transcribe(
    precision: str, server: FakeTriton, speech: F32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parameter in ("model", "precision"):
        value = server.configs["tiny-en"].parameters[parameter]
        value.string_value = value.string_value.replace("fp32", precision)
    model = load_text_model(server, monkeypatch)
    twice = np.concatenate([speech] * 4)  # 31 s, more than a window
    short = np.stack([speech[16_000:48_000], np.pad(speech[:20_000], (0, 12_000))])
    requests = [
        {"AUDIO": speech[None]},
        {"AUDIO": short, "AUDIO_LENGTH": np.array([[32_000], [20_000]], np.int32)},
        {"AUDIO": twice[None], "SAMPLE_RATE": np.array([[16_000]], np.int32)},
        {"AUDIO": speech[None, ::2], "SAMPLE_RATE": np.array([[8_000]], np.int32)},
        {"AUDIO": np.zeros((1, 0), np.float32)},
    ]
    clips = [(speech, 16_000), (short[0], 16_000), (short[1, :20_000], 16_000), (twice, 16_000)]
    clips += [(speech[::2], 8_000), (np.zeros(0, np.float32), 16_000)]
    if precision == "int8":  # how it rounds depends on what onnxruntime fuses, and half a minute shows it
        del requests[2], clips[3]
    outputs = server.execute(model, "tiny-en", requests)
    with load_plain(precision) as recognizer:
        alone = [recognizer.transcribe(*clip) for clip in clips]
    texts = [text.decode() for output in outputs for (text,) in output["TEXT"]]
    assert texts == [transcript.text for transcript in alone]
    assert texts[0]
    rows = [json.loads(row) for output in outputs for (row,) in output["JSON"]]
    confidences = np.concatenate([output["CONFIDENCE"] for output in outputs])[:, 0]
    for row, transcript, confidence in zip(rows, alone, confidences, strict=True):
        assert row["duration_s"] == transcript.duration_s
        assert [w["text"] for w in row["words"]] == [w.text for w in transcript.words]
        # Tolerance: clips are padded to others here.
        words = [w.confidence for w in transcript.words]
        assert confidence == pytest.approx(np.mean(words) if words else 0.0, abs=0.02)
    assert {name for name, _ in server.asked} == {f"tiny-en_{precision}"}
    model.finalize()


def test_more_clips_than_a_batch_takes(
    server: FakeTriton, speech: F32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_text_model(server, monkeypatch)
    audio = np.stack([speech[16_000 : 24_000 + 10 * n][:8_000] for n in range(16)])
    outputs = server.execute(model, "tiny-en", [{"AUDIO": audio}, {"AUDIO": audio[:5]}])
    assert [len(output["TEXT"]) for output in outputs] == [16, 5]
    assert [shapes["audio_signal"][0] for _, shapes in server.asked] == [16, 5]


def test_an_error_concerns_its_request_alone(
    server: FakeTriton, speech: F32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_text_model(server, monkeypatch)
    bad = np.full((1, 16_000), np.nan, np.float32)
    good, nan, rate = server.execute(
        model,
        "tiny-en",
        [
            {"AUDIO": speech[None]},
            {"AUDIO": bad},
            {"AUDIO": speech[None], "SAMPLE_RATE": np.array([[3]], np.int32)},
        ],
    )
    assert good["TEXT"][0, 0]
    assert "the waveform is nan at sample 0" in nan
    assert "the sample rate is 3" in rate
    server.fails = True
    (failed,) = server.execute(model, "tiny-en", [{"AUDIO": speech[None]}])
    assert failed == "Triton's model tiny-en_fp32 failed: no memory"


def test_another_decoder(server: FakeTriton, speech: F32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    server.configs["tiny-en"].parameters["decoder"].string_value = "beam"
    model = load_text_model(server, monkeypatch)
    (output,) = server.execute(model, "tiny-en", [{"AUDIO": speech[None]}])
    from edge_asr.runtime import beam_decoder

    with Recognizer.load(
        "tiny-en", precision="fp32", backend="cpu", decoder=beam_decoder(lm="bundle")
    ) as beam:
        assert output["TEXT"][0, 0].decode() == beam.transcribe(speech, 16_000).text


def test_steps_of_two_streams_are_those_of_the_runtime(server: FakeTriton, speech: F32Array) -> None:
    """Windows in, log-probs out; the state is Triton's, in the copy of the graph with its column."""
    bundle = Bundle.load("tiny-en")
    geometry = bundle.streaming.geometry
    with Recognizer.load("tiny-en", backend="cpu") as recognizer:
        features = recognizer._extractor(speech)
    model = StreamingModel.load(bundle, precision="int8", num_threads=1)
    reference = model.log_probs(features)
    model.close()
    found: dict[int, list[F32Array]] = {1: [], 2: []}
    for step in range(6):
        start, stop = geometry.window(step)
        window = np.ascontiguousarray(features[None, start:stop].transpose(0, 2, 1))
        for sequence in (1, 2):
            outputs = server.infer(
                "tiny-en_stream_int8",
                {"audio_signal": window, "length": np.array([[stop - start]])},
                sequence=sequence,
                start=step == 0,
            )
            assert outputs["encoded_lengths"].tolist() == [[geometry.chunk_frames]]
            found[sequence].append(outputs["logprobs"][0])
    for sequence in (1, 2):
        given = np.concatenate(found[sequence])
        # The runtime has the graph that onnxruntime rewrote for this CPU: int8 rounds otherwise.
        assert (given.argmax(-1) == reference[: len(given)].argmax(-1)).mean() > 0.95
        assert np.abs(given - reference[: len(given)]).mean() < 0.1
    assert np.array_equal(*(np.concatenate(found[sequence]) for sequence in (1, 2)))


@pytest.fixture
def with_engines(tmp_path: Path, repository: Path) -> Bundle:
    """The embedded model with fake plans for two GPUs, of fp32."""
    sys.path.insert(0, str(repository / "tests" / "runtime"))
    from engine_bundles import add_engine, copy_bundle
    from fake_tensorrt import FakeGpu

    bundle = copy_bundle(tmp_path / "bundle")
    tensors = tuple(
        EngineTensor(name=name, mode="input", dtype=dtype, shape=shape)
        for name, dtype, shape in (("audio_signal", "float32", (-1, 80, -1)), ("length", "int32", (-1,)))
    )
    for capability, built in (("8.7", "2026-11-01T00:00:00Z"), ("9.0", "2026-11-02T00:00:00Z")):
        device = {"compute_capability": capability, "gpu_name": f"GPU {capability}"}
        profiles = ((100, 200, 400, 1, 2, 4), (400, 800, 2400, 1, 2, 4))
        add_engine(
            bundle, FakeGpu(), "fp32", profiles=profiles, device=device, tensors=tensors, built_at=built
        )
    add_engine(
        bundle,
        FakeGpu(),
        "fp32",
        device={"compute_capability": "7.5"},
        tensors=tensors,
        proof={"passed": False},
    )
    return bundle


def test_engines(
    with_engines: Bundle,
    messages: ModuleType,
    speech: F32Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = write_triton_repository(with_engines, tmp_path / "models")
    assert names == ["tiny-en", "tiny-en_fp32", "tiny-en_tensorrt_fp32"]
    graph = with_engines.path / "model.onnx"
    server = FakeTriton(tmp_path / "models", messages, {"tiny-en_tensorrt_fp32": graph})
    config = server.configs["tiny-en_tensorrt_fp32"]
    assert dict(config.cc_model_filenames) == {"8.7": "model.sm87.plan", "9.0": "model.sm90.plan"}
    assert config.default_model_filename == "model.sm90.plan"
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert list(config.instance_group[0].profile) == ["0", "1"]
    files = {path.name for path in (tmp_path / "models" / "tiny-en_tensorrt_fp32" / "1").iterdir()}
    assert files == {"model.sm87.plan", "model.sm90.plan"}
    assert not (tmp_path / "models" / "tiny-en" / "1" / "bundle" / "engines").exists()

    model = load_text_model(server, monkeypatch)
    plain = server.infer

    def infer(name: str, inputs: dict[str, Any]) -> Any:
        assert inputs["length"].dtype == np.int32
        return plain(name, inputs)

    session = server.session("tiny-en_tensorrt_fp32")
    wide = lambda names, feeds: session.run(names, {**feeds, "length": feeds["length"].astype(np.int64)})  # noqa: E731
    server._sessions["tiny-en_tensorrt_fp32"] = type("Plan", (), {"run": staticmethod(wide)})
    monkeypatch.setattr(server, "infer", infer)
    clips = np.stack([speech[8_000:16_000]] * 6)
    long, short = server.execute(model, "tiny-en", [{"AUDIO": np.tile(speech, 4)[None]}, {"AUDIO": clips}])
    shapes = [shapes["audio_signal"] for name, shapes in server.asked if name == "tiny-en_tensorrt_fp32"]
    assert all(1 <= rows <= 4 for rows, _, _ in shapes)
    assert all(100 <= frames <= 2400 for _, _, frames in shapes)
    with Recognizer.load(with_engines.path, precision="fp32", backend="cpu", num_threads=1) as recognizer:
        assert long["TEXT"][0, 0].decode() == recognizer.transcribe(np.tile(speech, 4), 16_000).text
        assert short["TEXT"][0, 0].decode() == recognizer.transcribe(clips[0], 16_000).text


Run = Callable[..., Result]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_the_command_takes_a_bundle(tmp_path: Path) -> None:
    result = run("export", "--triton", tmp_path / "models")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        f"{tmp_path}/models: {', '.join(NAMES)}; serve it with: tritonserver --model-repository "
        f"{tmp_path}/models\n"
    )
    result = run("export", "tiny-en", "--triton", tmp_path / "models")
    assert result.exit_code == 1
    assert "exists; add --force to replace it" in result.stderr
    result = run("export", "tiny-en", "--triton", tmp_path / "models", "--force", "--json")
    assert json.loads(result.stdout)["models"] == NAMES


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tiny-en", "-o", "x", "--bench", "."], 2, "--bench sets the batches of --triton; add --triton DIR"),
        (["--triton", "x", "--bench", "nowhere"], 2, "'nowhere' does not exist"),
        (["--triton", "x", "--bench", "."], 1, "no benchmark at"),
        (["nothing", "--triton", "x"], 1, "no bundle at 'nothing'"),
        ([], 2, "Missing argument 'CHECKPOINT'"),
        (["tiny-en"], 2, "Missing option '-o' / '--output'"),
    ],
)
def test_options_that_make_no_sense(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", *arguments)
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.txt").touch()
    result = run("export", "--triton", tmp_path / "models", "--force")
    assert result.exit_code == 1
    assert "is not a Triton model repository of edge-asr" in result.stderr
    assert (tmp_path / "models" / "mine.txt").exists()
