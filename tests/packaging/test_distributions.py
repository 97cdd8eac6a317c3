"""The wheel and the sdist, built from a copy of the tree without its links, and the wheel at work
in a bare environment: no PyTorch, no onnx, and once without PortAudio.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ABSENT = ("torch", "onnx", "onnxscript", "onnxsim", "tensorrt", "jiwer", "safetensors")
EMBEDDED = (
    "edge_asr/models/tiny-en/bundle/bundle.json",
    "edge_asr/models/tiny-en/bundle/model.onnx",
    "edge_asr/models/tiny-en/bundle/tokens.txt",
    "edge_asr/models/tiny-en/bundle/vocab.txt",
    "edge_asr/models/tiny-en/bundle/config.json",
    "edge_asr/models/tiny-en/bundle/lm.bin",
    "edge_asr/models/tiny-en/checkpoint/config.json",
    "edge_asr/models/tiny-en/checkpoint/model.safetensors",
    "edge_asr/models/samples/robot_commands.flac",
    "edge_asr/models/calibration/manifest.jsonl",
    "edge_asr/models/samples/robot_commands.txt",
    "edge_asr/py.typed",
    "edge_asr/serving/captions.html",
)
MAX_MODEL_BYTES = 60_000_000
MAX_CHECKPOINT_BYTES = 16_000_000
MAX_LANGUAGE_MODEL_BYTES = 10_000_000
#: Fixtures of other projects, in the repository only.
GOLDEN = "tests/data/golden/"
MAX_GOLDEN_BYTES = 8_400_000


def check_output(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command; its standard error is shown when it fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, env={**clean, **environment}
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source_files(repository: Path) -> list[str]:
    """Files of the project, links and what tests and builds leave behind left out."""
    names = [f.name for f in repository.iterdir() if f.is_file() and not f.name.startswith(".")]
    for top in ("edge_asr", "export", "runtime", "calibration", "tests", "scripts", "docs"):
        for folder, subfolders, files in os.walk(repository / top):
            subfolders[:] = [name for name in subfolders if name != "__pycache__"]
            names += [str((Path(folder) / name).relative_to(repository)) for name in files]
    return sorted(n for n in names if not (repository / n).is_symlink())


@pytest.fixture(scope="module")
def expected_in_wheel(source_files: list[str]) -> set[str]:
    """Names inside the wheel: all modules, everything below edge_asr/models, py.typed, the captions page."""
    expected = set()
    for name in source_files:
        first = name.split("/")[0]
        module = name.endswith(".py") and first in ("edge_asr", "export", "runtime", "calibration")
        if module or name.startswith("edge_asr/models/") or name in EMBEDDED:
            expected.add(name if first == "edge_asr" else f"edge_asr/{name}")
    return expected


@pytest.fixture(scope="module")
def distributions(repository: Path, source_files: list[str], tmp_path_factory) -> dict[str, Path]:
    """ "sdist", "wheel" (made from the sdist) and "direct" (the wheel made from the tree)."""
    tree = tmp_path_factory.mktemp("tree") / "edge-asr"
    for name in source_files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, tree / name)
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation")
    check_output(*build, "--outdir", out, cwd=tree)
    check_output(*build, "--wheel", "--outdir", out / "direct", cwd=tree)
    return {
        "sdist": next(out.glob("*.tar.gz")),
        "wheel": next(out.glob("*.whl")),
        "direct": next((out / "direct").glob("*.whl")),
    }


def test_embedded_files_are_in_the_tree_and_within_their_sizes(repository: Path) -> None:
    for name in EMBEDDED:
        assert (repository / name).is_file(), name
    model = repository / "edge_asr" / "models" / "tiny-en"
    size = {f: f.stat().st_size for f in model.rglob("*") if f.is_file()}
    assert sum(size.values()) <= MAX_MODEL_BYTES
    assert sum(n for f, n in size.items() if f.parent.name == "checkpoint") <= MAX_CHECKPOINT_BYTES
    assert size[model / "bundle/lm.bin"] <= MAX_LANGUAGE_MODEL_BYTES


def test_wheel_holds_every_module_and_model_and_nothing_else(distributions, expected_in_wheel) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        information = {name.partition("/")[2] for name in wheel.namelist() if ".dist-info/" in name}
    assert names == expected_in_wheel
    assert set(EMBEDDED) <= names
    assert "licenses/LICENSE" in information


def test_sdist_builds_the_same_wheel_as_the_tree(distributions) -> None:
    def contents(path: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}

    assert contents(distributions["wheel"]) == contents(distributions["direct"])


def test_sdist_holds_every_module_model_test_and_document(
    distributions, source_files, repository: Path
) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    shipped = ("edge_asr/", "export/", "runtime/", "calibration/", "tests/", "scripts/", "docs/")
    golden = {name for name in source_files if name.startswith(GOLDEN)}
    assert sum((repository / name).stat().st_size for name in golden) <= MAX_GOLDEN_BYTES
    assert golden
    assert golden & names == set()
    expected = {name for name in source_files if name.startswith(shipped)} - golden
    expected |= {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "constraints.txt",
    }
    assert expected - names == set()
    assert set(EMBEDDED) <= names


@pytest.fixture(scope="module")
def bare(distributions, tmp_path_factory) -> Path:
    """Folder of programs of an environment with the wheel, its dependencies and onnxruntime only."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder)
    scripts = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check")
    check_output(*pip, "install", "-qq", "--no-compile", f"{distributions['wheel']}[cpu]", cwd=folder)
    code = f"import importlib.util as u; print([m for m in {ABSENT!r} if u.find_spec(m)])"
    assert check_output(scripts / "python", "-c", code, cwd=folder) == "[]\n"
    return scripts


@pytest.mark.slow
def test_bare_help_of_every_command(bare: Path, tmp_path: Path) -> None:
    from edge_asr.cli.main import COMMANDS

    assert check_output(bare / "edge-asr", "--help", cwd=tmp_path).startswith("Usage: edge-asr")
    for name in COMMANDS:
        usage = check_output(bare / "edge-asr", name, "--help", cwd=tmp_path)
        assert usage.startswith(f"Usage: edge-asr {name}")


@pytest.mark.slow
def test_bill_of_materials_names_each_dependency_and_its_license(
    bare: Path, repository: Path, tmp_path: Path
) -> None:
    tool = str(Path(sys.executable).parent / "cyclonedx-py")  # it checks what it writes against the schema
    file = tmp_path / "sbom.json"
    check_output(repository / "scripts/sbom", "-o", file, bare / "python", cwd=tmp_path, CYCLONEDX=tool)
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    found = {component["name"].lower(): component for component in bill["components"]}
    found["edge-asr"] = bill["metadata"]["component"]
    ours = {"edge-asr", "numpy", "scipy", "click", "rich", "soundfile", "soxr", "sounddevice", "onnxruntime"}
    assert ours <= set(found)
    assert not set(ABSENT) & set(found)
    for name in ours:
        assert found[name]["version"], name
        assert found[name]["licenses"], name


@pytest.mark.slow
def test_bare_import_of_the_runtime(bare: Path, tmp_path: Path) -> None:
    code = (
        "import sys, edge_asr.runtime as r; [getattr(r, n) for n in r.__all__]\n"
        f"print(r.__file__, [m for m in {ABSENT!r} if m in sys.modules])"
    )
    file, loaded = check_output(bare / "python", "-c", code, cwd=tmp_path).split(maxsplit=1)
    assert Path(file).is_relative_to(bare.parent)
    assert loaded == "[]\n"


@pytest.mark.slow
def test_bare_transcription_of_the_sample_with_the_embedded_model(
    bare: Path, tmp_path: Path, sample_path
) -> None:
    text = check_output(bare / "edge-asr", "transcribe", sample_path, cwd=tmp_path).strip()
    expected = sample_path.with_suffix(".txt").read_text().strip()
    from edge_asr.metrics import compute_error_rates

    assert text
    assert compute_error_rates([expected], [text], normalization="basic").wer <= 0.2, (expected, text)
    report = json.loads(check_output(bare / "edge-asr", "doctor", "--json", cwd=tmp_path))
    assert report["healthy"] is True


@pytest.mark.slow
def test_bare_commands_that_need_an_extra_name_it(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "text": "a"}\n')
    (tmp_path / "c.yaml").write_text("model: {}\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"architectures": ["ParakeetForCTC"]}')
    for arguments, extra in (
        (("export", "tiny-en", "-o", "b"), "export"),
        (("quantize", "tiny-en", "-o", "b"), "export"),
        (("inspect", "foreign"), "export"),
        (("evaluate", "m.jsonl"), "eval"),
        (("train", "c.yaml"), "train"),
    ):
        done = subprocess.run([bare / "edge-asr", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1, arguments
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert f"pip install 'edge-asr[{extra}]'" in done.stderr


@pytest.fixture(scope="module")
def without_portaudio(tmp_path_factory) -> dict[str, str]:
    """Environment of a Python that finds no PortAudio, as `import sounddevice` sees it."""
    folder = tmp_path_factory.mktemp("no-portaudio")
    (folder / "sitecustomize.py").write_text(
        "import ctypes.util\n"
        "find = ctypes.util.find_library\n"
        "ctypes.util.find_library = lambda name: None if name == 'portaudio' else find(name)\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_bare_without_portaudio(bare: Path, without_portaudio, tmp_path: Path, sample_path: Path) -> None:
    code = "try:\n    import sounddevice\nexcept OSError as error:\n    print(error)"
    absent = check_output(bare / "python", "-c", code, cwd=tmp_path, **without_portaudio)
    assert "PortAudio library not found" in absent
    code = "import edge_asr.runtime as r; [getattr(r, n) for n in r.__all__]"
    check_output(bare / "python", "-c", code, cwd=tmp_path, **without_portaudio)
    for arguments in (["--help"], ["listen", "--help"], ["transcribe", sample_path]):
        assert check_output(bare / "edge-asr", *arguments, cwd=tmp_path, **without_portaudio)
    environment = {**os.environ, **without_portaudio}
    done = subprocess.run(
        [bare / "edge-asr", "listen"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "libportaudio2" in done.stderr
    report = json.loads(
        check_output(bare / "edge-asr", "doctor", "--json", cwd=tmp_path, **without_portaudio)
    )
    (microphone,) = (c for c in report["checks"] if c["name"] == "microphone")
    assert (microphone["status"], microphone["fix"]) == ("missing", "sudo apt-get install libportaudio2")
