"""Hostile and damaged files: each is refused, in words, and nothing in it runs or leaves its folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from make_nemo import CONFIG, write_nemo

from edge_asr.checkpoints import load_any
from edge_asr.checkpoints.safe_archive import MAX_MEMBERS, inside, is_tar, read_file, read_members
from edge_asr.checkpoints.safe_sentencepiece import read_pieces
from edge_asr.checkpoints.safe_torch import load_safetensors, load_tensors
from edge_asr.checkpoints.safe_yaml import Settings, load_json, load_yaml
from edge_asr.errors import CheckpointError


class Bomb:
    """Pickles to a call that makes a file; unpickled by anything careless, it exists afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def read_all(path: Path) -> dict[str, bytes]:
    return read_members(path, lambda name: 1 << 30)


# Archives.


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "./../evil"])
def test_members_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "a.tar", (member("ok", 2), b"ok"), (member(name, 1), b"x"))
    with pytest.raises(CheckpointError, match="leaves its folder"):
        read_all(path)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "model_config.yaml"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
    ],
)
def test_links_and_devices(tmp_path: Path, kind: bytes, link: str) -> None:
    path = tar_of(tmp_path / "a.tar", (member("weights", 0, kind, link), b""))
    with pytest.raises(CheckpointError, match="link or device"):
        read_all(path)


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", (member("a/x", 1), b"1"), (member("b/x", 1), b"2"))
    with pytest.raises(CheckpointError, match="'x' twice"):
        read_all(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nemo"
    with gzip.open(path, "wb") as zipped, tarfile.open(fileobj=zipped, mode="w|") as archive:
        archive.addfile(member("model_weights.ckpt", 64 << 20), io.BytesIO(bytes(64 << 20)))
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="would unpack to more than"):
        read_all(path)


def test_a_huge_configuration_in_a_nemo_file_is_not_read(tmp_path: Path) -> None:
    """Weights that do not compress let the archive's own limit pass gigabytes of YAML."""
    path = tmp_path / "bomb.nemo"
    with gzip.open(path, "wb", compresslevel=1) as zipped, tarfile.open(fileobj=zipped, mode="w|") as archive:
        weights = os.urandom(1 << 20)
        archive.addfile(member("model_weights.ckpt", len(weights)), io.BytesIO(weights))
        archive.addfile(member("model_config.yaml", 40 << 20), io.BytesIO(bytes(40 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=rf"'model_config\.yaml' with {40 << 20} bytes, more than"):
            load_any(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_claims_more_than_there_is(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", (member("weights", 4), b"1234"))
    content = bytearray(path.read_bytes()[: 512 + 2])  # cut inside the member
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged|ends after"):
        read_all(path)


def test_too_many_members(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", *((member(f"m{i}"), b"") for i in range(MAX_MEMBERS + 1)))
    with pytest.raises(CheckpointError, match="more than 10000 members"):
        read_all(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_extended_headers_are_bounded_too(tmp_path: Path, kind: bytes) -> None:
    """tarfile reads them whole ahead of the member they belong to: 1 GiB of zeros here, in 1 MB."""
    path = tmp_path / "bomb.nemo"
    with gzip.open(path, "wb", compresslevel=1) as zipped:
        zipped.write(member("header", 1 << 30, kind).tobuf(tarfile.GNU_FORMAT))
        for _ in range(4):  # enough of it to be read, were it believed
            zipped.write(bytes(1 << 20))
    with pytest.raises(CheckpointError, match="would unpack to more than"):
        read_all(path)


def test_a_chain_of_extended_headers(tmp_path: Path) -> None:
    record = b"12 a=bcdefgh".ljust(11, b" ")[:11] + b"\n"
    header = member("h", len(record), tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) + record.ljust(512, b"\0")
    path = tmp_path / "chain.nemo"
    path.write_bytes(header * 5000)
    with pytest.raises(CheckpointError, match="no tar archive"):
        read_all(path)


def test_a_sparse_member_that_stands_for_more(tmp_path: Path) -> None:
    """GNU's old sparse header: 1 TiB, of which the archive holds nothing."""
    info = member("model_weights.ckpt", 0, tarfile.GNUTYPE_SPARSE)
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (0, 0)
    head[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # real size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path = tmp_path / "sparse.nemo"
    path.write_bytes(bytes(head) + bytes(1024))
    with pytest.raises(CheckpointError, match="would unpack to more than"):
        read_all(path)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\x1f\x8b broken", os.urandom(2000)])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.nemo"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_any(path)
    with pytest.raises(CheckpointError, match="no tar archive"):
        read_all(path)


def test_detection_never_raises(tmp_path: Path) -> None:
    assert not is_tar(tmp_path / "missing")
    assert not is_tar(tmp_path)


def test_unwanted_links_do_not_matter(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "a.tar", (member("latest", 0, tarfile.SYMTYPE, "x"), b""), (member("x", 1), b"1")
    )
    assert read_members(path, lambda name: 9 * (name == "x")) == {"x": b"1"}


# Folders.


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\b"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="leaves the folder"):
        inside(tmp_path, name)


def test_links_inside_folders(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "config.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="link that leaves"):
        inside(folder, "config.yaml")
    (folder / "real").write_text("y")
    (folder / "alias").symlink_to("real")
    assert inside(folder, "alias").read_text() == "y"


def test_sizes_of_files(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(11))
    with pytest.raises(CheckpointError, match="more than 10 bytes"):
        read_file(tmp_path / "big", limit=10, what="a list")
    with pytest.raises(CheckpointError, match="is missing"):
        read_file(tmp_path / "none", limit=10, what="a list")
    with pytest.raises(CheckpointError, match="is missing"):
        read_file(Path("/dev/zero"), limit=10, what="a list")


# Pickles.


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_that_run_code_do_not(tmp_path: Path, legacy: bool) -> None:
    path, proof = tmp_path / "model.pth", tmp_path / "executed"
    state = {"weight": torch.zeros(2), "bomb": Bomb(proof)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="Python objects beside tensors"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match="Python objects beside tensors"):
        load_tensors(path.read_bytes(), "model.pth")
    assert not proof.exists()


def test_a_bare_pickle_and_a_nemo_file_with_one(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    bare = tmp_path / "model.pth"
    bare.write_bytes(pickle.dumps({"x": Bomb(proof)}, protocol=2))
    with pytest.raises(CheckpointError):
        load_tensors(bare)
    path = write_nemo(tmp_path / "model.nemo", CONFIG, {"x": Bomb(proof)})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="Python objects beside tensors"):
        load_any(path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", os.urandom(500), b"\x80\x02."])
def test_what_is_no_weight_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_tensors(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(128 << 20))
    with pytest.raises(CheckpointError, match="would unpack to"):
        load_tensors(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"a": 1}, "entry 'a' is a int"),
        ({1: torch.zeros(1)}, "entry 1 is a Tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "not a dense tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"a": torch.tensor([float("nan")])}, "not finite"),
    ],
)
def test_state_dicts_of_anything_else(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "state",
    [
        {"a": torch.zeros(1).expand(1 << 40)},
        {f"a{index}": tensor for index, tensor in enumerate([torch.zeros(1 << 16)] * 64)},
        {"a": torch.zeros(1, dtype=torch.float16).expand(1 << 20, 1 << 20)},
    ],
)
def test_tensors_that_stand_for_more_than_they_hold(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "model.pth")
    assert (tmp_path / "model.pth").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="of which the file holds"):
        load_tensors(tmp_path / "model.pth")


def test_tied_weights_are_no_bomb(tmp_path: Path) -> None:
    weight = torch.randn(400, 400)
    torch.save({"embed": weight, "head": weight, "row": weight[:1].expand(8, -1)}, tmp_path / "model.pth")
    assert torch.equal(load_tensors(tmp_path / "model.pth")["head"], weight)


def test_tensors_without_values(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(3, device="meta")}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"a has no values \(meta\)"):
        load_tensors(tmp_path / "model.pth")


def test_nested_state_dicts_and_half_precision(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2, dtype=torch.bfloat16)}}, tmp_path / "model.pth")
    tensors = load_tensors(tmp_path / "model.pth", key="model")
    assert tensors["a"].dtype == torch.float32
    with pytest.raises(CheckpointError, match="no entry 'state_dict'"):
        load_tensors(tmp_path / "model.pth", key="state_dict")


def test_damaged_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="damaged"):
        load_safetensors(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        load_safetensors(tmp_path / "none.safetensors")


# Settings.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.mkdir [executed]", "plain YAML"),
        ("a: !!python/name:os.system", "plain YAML"),
        ("- a list", "must hold a mapping"),
        ("a: [1, 2", "plain YAML"),
        ("\t: x", "plain YAML"),
        ("a: " + "[" * 3000, "plain YAML"),
        ("a: " + "- " * 3000, "plain YAML"),
        ("a: " + "9" * 10_000, "plain YAML"),
        ("a: 2024-99-99", "plain YAML"),
        ("? [a]\n: b", "plain YAML"),
        ("a: 1\n---\nb: 2", "plain YAML"),
    ],
)
def test_yaml_of_anything_else(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_yaml(text.encode(), "config.yaml")
    assert not Path("executed").exists()


def test_aliases_may_repeat_but_not_explode() -> None:
    assert load_yaml(b"a: &x [1, 2]\nb: *x", "config.yaml") == {"a": [1, 2], "b": [1, 2]}
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(CheckpointError, match="more than 1000000 values"):
        load_yaml("\n".join(lines).encode(), "config.yaml")
    merged = ["a0: &a0 {" + ", ".join(f"k{i}: x" for i in range(10)) + "}"]
    merged += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    with pytest.raises(CheckpointError, match="more than 1000000 values"):
        load_yaml("\n".join(merged).encode(), "config.yaml")
    with pytest.raises(CheckpointError, match="contains itself"):
        load_yaml(b"a: &x [1, *x]", "config.yaml")


def test_numbers_that_yaml_reads_as_text() -> None:
    settings = Settings(load_yaml(b"eps: 1e-12\nn: 3\nflag: null", "c"), "c")
    assert settings.number("eps") == 1e-12
    assert settings.flag("flag", True) is True
    with pytest.raises(CheckpointError, match="c has the unknown setting 'n'"):
        settings.finish()
    with pytest.raises(CheckpointError, match=r"c\.n is 3; edge-asr takes 'a' or 'b'"):
        settings.expect("n", ("a", "b"))
    with pytest.raises(CheckpointError, match="c lacks 'm'"):
        settings.take("m")


def test_json_of_anything_else(tmp_path: Path) -> None:
    for content in (b"[1]", b"{", b"\xff\xfe", json.dumps({"a": 1}).encode()[:-1], b"[" * 100_000):
        with pytest.raises(CheckpointError):
            load_json(content, "config.json")


# SentencePiece models.


def test_pieces_against_the_library(golden_dir: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = golden_dir / "espnet-conformer" / "data" / "en_token_list" / "bpe_unigram44" / "bpe.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = read_pieces(model.read_bytes(), "bpe.model")
    assert [piece.text for piece in pieces] == [
        processor.id_to_piece(i) for i in range(processor.vocab_size())
    ]
    assert [p.kind == "control" for p in pieces] == [processor.is_control(i) for i in range(len(pieces))]
    assert [p.kind == "unknown" for p in pieces] == [processor.is_unknown(i) for i in range(len(pieces))]


@pytest.mark.parametrize(
    "content", [b"", b"\x0a\xff\xff\xff\xff\x7f", b"\x0b", b"\x0a\x03\x0a\x05a", b"\x80" * 20, b"\x0a\x00"]
)
def test_damaged_sentencepiece_models(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read_pieces(content, "bpe.model")
