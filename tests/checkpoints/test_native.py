"""Native checkpoints: nothing is lost on the way, damage is named, an interrupted write harms nothing."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_asr import atomic
from edge_asr.bundle import folder
from edge_asr.checkpoints import (
    Checkpoint,
    CheckpointLoader,
    LoadOptions,
    SourceFacts,
    find_loader,
    load_any,
    load_checkpoint,
    native,
    register_loader,
    registry,
    save_checkpoint,
)
from edge_asr.checkpoints.native_config import read_config
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
    "overrides",
    [
        {},
        {"head": "lstm", "attention": "linear", "conv_norm": "layer_norm"},
        {"decoder": {"kind": "recurrent"}},
        {"decoder": {"n_heads": 1}, "right_decoder": {"d_model": 12, "n_heads": 3}},
    ],
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


def test_a_checkpoint_without_decoder_is_as_before(tmp_path: Path) -> None:
    """Older versions, which refuse unknown keys, read it; its file says nothing about decoders."""
    config = json.loads((save(tmp_path / "ck") / native.CONFIG_NAME).read_text())
    assert not [key for key in config["model"] if "decoder" in key]
    assert load_checkpoint(tmp_path / "ck").model_config.decoder is None
    assert load_checkpoint(tmp_path / "ck").build_model().decoder is None


def test_weights_of_another_decoder_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "ck", build_model(decoder={"kind": "recurrent"}))
    config = json.loads((path / native.CONFIG_NAME).read_text())
    config["model"]["decoder"]["n_tokens"] = 9
    (path / native.CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"decoder.embedding.weight has shape \(6, 16\), .* \(9, 16\)"):
        load_checkpoint(path)


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
        ({"model": []}, r"config\.json: model is \[\]; it must be an object"),
        (
            {"vocabulary": {"kind": "char", "blank_id": 4, "tokens": None}},
            "tokens is None; it must be a list",
        ),
        ({"provenance": {"a": "\ud800"}}, r"provenance\.a is .*; it must be text"),
        ({"facts": {"dynamic_chunks": "false"}}, r"facts\.dynamic_chunks is 'false'; it must be true or"),
        ({"format_version": True}, "format_version is True"),
        ({"model": {"vocab_size": 5, "wings": 2}}, "model has the unknown key 'wings'"),
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
    with pytest.raises(CheckpointError, match="is not valid JSON"):
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


def test_a_failed_swap_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "ck", build_model(1))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic, "exchange", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save(path, build_model(2))
    monkeypatch.undo()
    assert torch.equal(load_checkpoint(path).state_dict[BIAS], build_model(1).state_dict()[BIAS])
    assert [entry.name for entry in tmp_path.iterdir()] == ["ck"]


KILLED_AFTER_ITS_FIRST_MOVE = """
import os, signal, sys
from edge_asr import atomic
from edge_asr.checkpoints import load_checkpoint, save_checkpoint

def deadly(move):
    def moved(*arguments):
        move(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    return moved

found = load_checkpoint(sys.argv[1])
for module, name in ((os, "rename"), (os, "replace"), (atomic, "exchange")):
    setattr(module, name, deadly(getattr(module, name)))
save_checkpoint(sys.argv[1], found.build_model(), found.features, found.vocabulary, {"recipe": "second"})
"""


def test_a_killed_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """At no moment is there none: killed right behind the first move, the old or the new one is there."""
    path = save(tmp_path / "ck")
    child = subprocess.run([sys.executable, "-c", KILLED_AFTER_ITS_FIRST_MOVE, str(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert load_checkpoint(path).provenance["recipe"] in ("test", "second")
    save(path, build_model(2))  # what the killed process left is removed
    assert [entry.name for entry in tmp_path.iterdir()] == ["ck"]


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path: Path) -> None:
    save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", build_model(2))
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(load_checkpoint(tmp_path / "real").state_dict[BIAS], build_model(2).state_dict()[BIAS])


FACTS = SourceFacts(
    source_blank_id=0,
    attention_contexts=((70, 13), (70, -1), (-1, -1)),
    attention_context_style="chunked_limited",
    dynamic_chunks=True,
    notes=("A note.",),
)


def test_facts_travel_and_provenance_decides_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "ck", facts=FACTS)
    checkpoint = load_checkpoint(path)
    assert checkpoint.facts == FACTS
    assert (checkpoint.source_blank_id, checkpoint.notes) == (0, ("A note.",))
    assert checkpoint.attention_contexts == ((70, 13), (70, -1))
    assert (checkpoint.attention_context_style, checkpoint.has_dynamic_chunks) == ("chunked_limited", True)
    plain = load_checkpoint(save(tmp_path / "plain"))
    assert (plain.facts, plain.source_blank_id) == (SourceFacts(), VOCABULARY.blank_id)
    assert (plain.attention_contexts, plain.has_dynamic_chunks) == ((), False)
    assert plain.attention_context_style == plain.model_config.attention_context_style
    told = {"recipe": "told", "dynamic_chunk": True, "source_blank_id": 1}
    again = save_checkpoint(tmp_path / "told", build_model(), FEATURES, VOCABULARY, told, facts=FACTS)
    assert load_checkpoint(again).facts == FACTS


def test_older_files_have_their_facts_in_the_provenance(tmp_path: Path) -> None:
    path = save(tmp_path / "ck")
    config = json.loads((path / native.CONFIG_NAME).read_text())
    assert "facts" not in config
    config["provenance"] |= {
        "source_blank_id": 0,
        "attention_contexts": [[70, 13], [70, -1], [-1, -1]],
        "attention_context_style": "chunked_limited",
        "dynamic_chunk": True,
        "notes": ["A note."],
    }
    (path / native.CONFIG_NAME).write_text(json.dumps(config))
    checkpoint = load_checkpoint(path)
    assert (checkpoint.facts, checkpoint.provenance) == (FACTS, {"recipe": "test"})


def test_wrong_facts_are_named() -> None:
    with pytest.raises(CheckpointError, match="attention_context_style is 'banded'; it must be one of"):
        SourceFacts(attention_context_style="banded")  # type: ignore[arg-type]


def test_embedded_checkpoints_load() -> None:
    checkpoint = load_checkpoint("tiny-en")
    bundle = folder.Bundle.load("tiny-en")
    assert (checkpoint.facts, checkpoint.provenance) == (SourceFacts(), bundle.info.source["provenance"])
    assert checkpoint.vocabulary.to_token_lines() == bundle.vocabulary.to_token_lines()


def test_formats_are_detected_without_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "ck")
    loader = find_loader(path)
    assert loader is not None
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edge_asr.checkpoints import find_loader\n"
        "print(find_loader(sys.argv[1]).name)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == loader.name == "edge-asr"


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
    monkeypatch.setattr(folder, "EMBEDDED_MODELS", tmp_path / "models")
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
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
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


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a JSON document, containers included."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


@pytest.mark.parametrize("value", [None, True, 7, -1.5, "text", [], {}, "\ud800", 10**90, [[[]]]])
def test_no_value_anywhere_is_a_traceback(tmp_path: Path, value: Any) -> None:
    """Whatever stands anywhere in config.json, it is read or refused with the name of the file."""
    path = save(tmp_path / "ck", facts=FACTS)
    whole = (path / native.CONFIG_NAME).read_text(encoding="utf-8")
    for place in list(leaves(json.loads(whole))):
        data = json.loads(whole)
        target = data
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        (path / native.CONFIG_NAME).write_text(json.dumps(data))
        try:
            read_config(path)
        except CheckpointError as error:
            told = str(error)
        else:
            continue
        assert str(path) in told


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "9" * 5000])
def test_deep_and_long_json_is_an_error(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "ck")
    (path / native.CONFIG_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is"):
        load_checkpoint(path)
