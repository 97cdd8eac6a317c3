"""Native checkpoints: nothing is lost on the way, damage is named, an interrupted write harms nothing."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_asr import checkpoints
from edge_asr.checkpoints import (
    Checkpoint,
    CheckpointLoader,
    LoadOptions,
    load_any,
    load_checkpoint,
    native,
    register_loader,
    save_checkpoint,
)
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_characters("abc ")
FEATURES = FeatureConfig.from_preset("nemo", n_mels=40)


def build_model(seed: int = 0, **overrides: Any) -> ConformerCTC:
    torch.manual_seed(seed)
    small = {"d_model": 16, "n_layers": 2, "subsampling_channels": 8, "n_mels": 40, **overrides}
    model = ConformerCTC(ConformerConfig.from_preset("tiny", vocab_size=len(VOCABULARY), **small))
    if model.cmvn is not None:
        model.set_cmvn(torch.randn(40), torch.rand(40) + 0.5)
    return model.eval()


def save(path: Path, model: ConformerCTC | None = None, **options: Any) -> Path:
    return save_checkpoint(path, model or build_model(), FEATURES, VOCABULARY, {"recipe": "test"}, **options)


@pytest.mark.parametrize(
    "overrides", [{}, {"head": "lstm", "attention": "linear", "conv_norm": "layer_norm"}]
)
def test_round_trip_is_exact(tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = build_model(**overrides)
    save(tmp_path / "new" / "checkpoint", model, tokenizer_model=b"pieces")
    checkpoint = load_checkpoint(tmp_path / "new" / "checkpoint")
    assert checkpoint.model_config == model.config
    assert checkpoint.features == FEATURES
    assert checkpoint.vocabulary == VOCABULARY
    assert checkpoint.provenance == {"recipe": "test"}
    assert checkpoint.path == tmp_path / "new" / "checkpoint"
    assert checkpoint.tokenizer_model == b"pieces"
    again = checkpoint.build_model()
    assert not again.training
    assert list(again.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    features, lens = torch.randn(2, 33, 40), torch.tensor([33, 9])
    assert torch.equal(again(features, lens)[0], model(features, lens)[0])


def test_float16_files_load_as_float32(tmp_path: Path) -> None:
    model = build_model()
    save(tmp_path / "half", model, dtype="float16")
    save(tmp_path / "full", model)
    half, full = ((tmp_path / name / native.WEIGHTS_NAME).stat().st_size for name in ("half", "full"))
    assert half < 0.65 * full
    for name, value in load_checkpoint(tmp_path / "half").state_dict.items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            # Half precision keeps 11 bits.
            torch.testing.assert_close(value, model.state_dict()[name], rtol=2**-11, atol=1e-7)


def test_build_model_copies_the_weights(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path / "ck"))
    model = checkpoint.build_model()
    with torch.no_grad():
        model.head.projection.bias.add_(1.0)
    assert not torch.equal(checkpoint.state_dict["head.projection.bias"], model.head.projection.bias)


def edit_weights(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(path / native.WEIGHTS_NAME)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path / native.WEIGHTS_NAME)


BIAS = "head.projection.bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({BIAS: None}, f"missing {BIAS}"),
        ({"head.extra": torch.zeros(1)}, "unexpected head.extra"),
        ({BIAS: torch.zeros(7)}, r"head.projection.bias has shape \(7,\), the configuration says \(5,\)"),
        ({BIAS: torch.zeros(5, dtype=torch.bfloat16)}, "is torch.bfloat16, expected float32 or float16"),
        ({BIAS: torch.full((5,), float("nan"))}, "not finite"),
        (
            {"encoder.layers.0.convolution.batch_norm.num_batches_tracked": torch.tensor(1.0)},
            "num_batches_tracked is torch.float32, expected torch.int64",
        ),
    ],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    path = save(tmp_path / "ck")
    edit_weights(path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format_version": 2}, "format_version is 2, this edge-asr reads 1"),
        ({"format_version": None}, "format_version is None"),
        ({"optimizer": {}}, "has the unknown key 'optimizer'"),
        ({"features": None}, "lacks 'features'"),
        ({"model": []}, "'model' must be an object, got list"),
        ({"model": {"vocab_size": 5, "wings": 2}}, "Unknown model setting 'wings'"),
        ({"model": {"vocab_size": 9, "n_mels": 40}}, "the model has 9 outputs, the vocabulary 5 tokens"),
        ({"model": {"vocab_size": 5, "n_mels": 80}}, "the model takes 80 mel bands, the features give 40"),
        ({"model": {"vocab_size": 5, "n_mels": 40}}, "does not fit its config.json: missing .*more"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "ck")
    config = json.loads((path / native.CONFIG_NAME).read_text())
    for key, value in edit.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    (path / native.CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "ck")
    weights = path / native.WEIGHTS_NAME
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_checkpoint(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        load_checkpoint(path)
    (path / native.CONFIG_NAME).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_checkpoint(path)
    (path / native.CONFIG_NAME).unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "ck")
    (path / native.WEIGHTS_NAME).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_saving_replaces_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path / "ck", build_model(1), tokenizer_model=b"old")
    save(path, build_model(2))
    checkpoint = load_checkpoint(path)
    assert torch.equal(checkpoint.state_dict[BIAS], build_model(2).state_dict()[BIAS])
    assert checkpoint.tokenizer_model is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["ck"]
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"files that are no checkpoint \(thesis.tex\)"):
        save(path)
    with pytest.raises(CheckpointError, match="is a file"):
        save(path / "thesis.tex")
    assert (path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_interrupted_save_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """Whether the disk fills while writing (1) or while flushing (2), the old checkpoint stays whole."""
    path = save(tmp_path / "ck", build_model(1))

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if fails_at == 1:
        monkeypatch.setattr(Path, "write_bytes", fail)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save(path, build_model(2))
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(path).state_dict[BIAS], build_model(1).state_dict()[BIAS])
    assert [entry.name for entry in tmp_path.iterdir()] == ["ck"]


def test_a_failed_swap_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "ck", build_model(1))
    replace = os.replace

    def fail_when_new(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_when_new)
    with pytest.raises(OSError, match="Input/output error"):
        save(path, build_model(2))
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(path).state_dict[BIAS], build_model(1).state_dict()[BIAS])
    assert [entry.name for entry in tmp_path.iterdir()] == ["ck"]


def test_what_cannot_be_saved_is_refused_before_writing(tmp_path: Path) -> None:
    model = build_model()
    with pytest.raises(CheckpointError, match="dtype must be float32 or float16, got 'int8'"):
        save(tmp_path / "ck", dtype="int8")
    with pytest.raises(CheckpointError, match="provenance must be plain JSON"):
        save_checkpoint(tmp_path / "ck", model, FEATURES, VOCABULARY, {"when": object()})
    with pytest.raises(CheckpointError, match="the model has 5 outputs, the vocabulary 3 tokens"):
        save_checkpoint(tmp_path / "ck", model, FEATURES, Vocabulary.from_characters("ab"), {})
    blank_first = Vocabulary(kind="char", tokens=("<blk>", "a", "b", "c", "▁"), blank_id=0)
    with pytest.raises(CheckpointError, match="the blank is token 0; our models have it last"):
        save_checkpoint(tmp_path / "ck", model, FEATURES, blank_first, {})
    with torch.no_grad():
        model.head.projection.bias.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"head\.projection\.bias is not finite as float16"):
        save(tmp_path / "ck", model, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_embedded_models_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_EMBEDDED", tmp_path / "models")
    save(tmp_path / "models" / "small-xx" / "checkpoint")
    assert load_any("small-xx").path == tmp_path / "models" / "small-xx" / "checkpoint"
    with pytest.raises(
        CheckpointError, match="no-such is not a checkpoint folder; embedded models: small-xx"
    ):
        load_checkpoint("no-such")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "small-xx", build_model(3))
    assert load_checkpoint("small-xx").path == Path("small-xx")  # what is on disk comes first


def test_load_any_asks_the_registered_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_LOADERS", dict(checkpoints._LOADERS))
    path = save(tmp_path / "ck")
    assert load_any(path).model_config == build_model().config
    foreign = tmp_path / "model.foreign"
    with pytest.raises(CheckpointError, match=r"model\.foreign does not exist: edge-asr \(a folder"):
        load_any(foreign)
    foreign.touch()
    with pytest.raises(CheckpointError, match=r"exists but is none of these: edge-asr \(a folder"):
        load_any(foreign)

    def load_foreign(_: str | Path, options: LoadOptions) -> Checkpoint:
        return load_checkpoint(path)

    register_loader(
        CheckpointLoader(
            name="foreign",
            what="a .foreign file",
            detect=lambda p: Path(p).suffix == ".foreign",
            load=load_foreign,
        )
    )
    assert load_any(foreign).path == path
