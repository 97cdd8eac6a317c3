"""The source tree: packages listed as they are, links right, dependency direction, public names."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import edge_asr
import edge_asr.runtime

STAGES = ("calibration", "export", "runtime")
#: What `edge_asr.runtime` and what it imports may never need.
NOT_IN_RUNTIME = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxsim",
    "tensorrt",
    "lhotse",
    "lightning",
    "safetensors",
    "sentencepiece",
    "jiwer",
    "matplotlib",
    "yaml",
    "edge_asr.export",
    "edge_asr.calibration",
    "edge_asr.training",
    "edge_asr.model",
    "edge_asr.checkpoints",
    "edge_asr.cli",
)


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def test_package_list_is_the_folders(repository: Path, project: dict) -> None:
    root = repository / "edge_asr"
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if name not in ("__pycache__", "models")]
        relative = Path(folder).relative_to(repository)
        if any(name.endswith(".py") for name in files):
            assert "__init__.py" in files, f"{relative} has modules and no __init__.py"
            found.append(".".join(relative.parts))
    setuptools = project["tool"]["setuptools"]
    assert sorted(found) == setuptools["packages"]
    assert setuptools["package-dir"] == {"edge_asr": "edge_asr", **{f"edge_asr.{s}": s for s in STAGES}}


@pytest.mark.parametrize("stage", STAGES)
def test_links_lead_to_the_stages(repository: Path, stage: str) -> None:
    assert os.readlink(repository / "edge_asr" / stage) == f"../{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_git_keeps_the_links_as_links(repository: Path, stage: str) -> None:
    if shutil.which("git") is None or not (repository / ".git").exists():
        pytest.skip("needs git and its folder; this tree was unpacked, not cloned")
    command = ["git", "ls-files", "-s", f"edge_asr/{stage}"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert listed.stdout.startswith("120000 "), listed.stdout


def test_versions_agree(project: dict) -> None:
    from importlib import metadata

    assert edge_asr.__version__ == project["project"]["version"] == metadata.version("edge-asr")


def test_constraints_pin_what_the_extras_allow(repository: Path, project: dict) -> None:
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins == ["torch==2.13.0"]
    assert any(r.startswith("torch>=") for r in project["project"]["optional-dependencies"]["export"])


def test_cpu_and_gpu_are_never_asked_for_together(project: dict) -> None:
    extras = project["project"]["optional-dependencies"]

    def closure(names: set[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            for requirement in extras[name]:
                own = re.fullmatch(r"edge-asr\[([\w,-]+)\]", requirement)
                found |= (
                    closure(set(own.group(1).split(","))) if own else {re.split(r"[<>=;\s]", requirement)[0]}
                )
        return found

    for name in extras:
        assert not {"onnxruntime", "onnxruntime-gpu"} <= closure({name}), name
    assert "torch" not in closure({"cpu"}) | closure({"gpu"}) | closure({"jetson"}) | closure({"tensorrt"})


def imported_names(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def test_runtime_sources_name_nothing_heavy(repository: Path) -> None:
    files = sorted((repository / "runtime").rglob("*.py"))
    assert len(files) > 5
    for file in files:
        for name in imported_names(file):
            assert not any(name == m or name.startswith(m + ".") for m in NOT_IN_RUNTIME), f"{file}: {name}"


HIDE = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == m or name.startswith(m + ".") for m in {modules!r}):
            raise ModuleNotFoundError(f"{{name}} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run_hidden(modules: tuple[str, ...], code: str) -> str:
    """Standard output of `code` in a process that cannot import `modules`."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(modules=modules) + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_runtime_module_imports_with_the_heavy_ones_hidden() -> None:
    code = """
import importlib, pkgutil
import edge_asr.runtime
names = [m.name for m in pkgutil.walk_packages(edge_asr.runtime.__path__, "edge_asr.runtime.")]
for name in names:
    importlib.import_module(name)
for name in edge_asr.runtime.__all__:
    getattr(edge_asr.runtime, name)
loaded = set(sys.modules)
print(len(names), sorted(loaded & {"torch", "onnx", "onnxruntime", "sounddevice"}))
"""
    n_modules, loaded = run_hidden((*NOT_IN_RUNTIME, "onnxruntime"), code).split(maxsplit=1)
    assert int(n_modules) > 5
    assert loaded.strip() == "[]"


def test_hiding_really_hides() -> None:
    code = """
try:
    import edge_asr.export
except ModuleNotFoundError as error:
    print(error)
"""
    assert run_hidden(("torch", "edge_asr.export"), code) == "edge_asr.export is hidden\n"


def test_public_names_are_pinned() -> None:
    assert edge_asr.__all__ == ["__version__"]
    assert edge_asr.runtime.__all__ == [
        "AlignedWord",
        "Alignment",
        "AudioBlock",
        "AudioSource",
        "Backend",
        "BeamDecoder",
        "Decoder",
        "DeviceChange",
        "EndpointConfig",
        "Error",
        "FeatureConfig",
        "FeatureExtractor",
        "FeatureStream",
        "FileSource",
        "Final",
        "Gap",
        "GrammarDecoder",
        "GrammarResult",
        "GreedyDecoder",
        "Hotword",
        "Hypothesis",
        "LiveConfig",
        "LiveRecognizer",
        "LiveStats",
        "Loss",
        "MicrophoneConfig",
        "MicrophoneSource",
        "OnnxRuntimeBackend",
        "Partial",
        "PcmSource",
        "QueueSource",
        "Recognizer",
        "Recorder",
        "Segment",
        "SourceChange",
        "StageTime",
        "StreamingDecoder",
        "StreamingModel",
        "TensorRTBackend",
        "Token",
        "TokenRuns",
        "Transcript",
        "Unmatched",
        "Word",
        "attention_decoder",
        "beam_decoder",
        "create_backend",
        "grammar_decoder",
        "greedy_decode",
        "list_devices",
        "load_tested",
        "read_hotwords",
        "rescoring_decoder",
        "streaming_decoders",
    ]
    for name in edge_asr.runtime.__all__:
        assert getattr(edge_asr.runtime, name).__module__.startswith(
            ("edge_asr.runtime.", "edge_asr.feature")
        )
