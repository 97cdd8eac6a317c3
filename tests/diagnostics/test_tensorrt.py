"""TensorRT lines: the real TensorRT-RTX where it is installed, fake TensorRT modules for the rest."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edge_asr.diagnostics import tensorrt
from edge_asr.diagnostics.cuda import CudaState

NO_GPU = CudaState(works=False, version=None)
ORIN = CudaState(works=True, version="12.6")
THOR = CudaState(works=True, version="13.0")

FAKE_MODULE = """
__version__ = "10.3.0.26"
class ILogger:
    ERROR, INTERNAL_ERROR = 1, 0
class Builder:
    def __init__(self, logger):
        {body}
"""


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`fake_tensorrt(tensorrt=source)` puts modules first on the path of the probe; others are hidden."""

    def make(**sources: str) -> None:
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        for name in ("tensorrt", "tensorrt_rtx"):
            hidden = f"raise ModuleNotFoundError(name={name!r})"
            (folder / f"{name}.py").write_text(sources.get(name, hidden))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return make


def test_rtx_builder_on_cpu_execution_not_tested(fake_machine) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt-rtx-cu13 (x86_64 Linux, extra test)")
    checks, states = tensorrt.check_tensorrt(fake_machine(), NO_GPU)
    rtx = next(c for c in checks if c.name == "TensorRT-RTX")
    assert rtx.status == "ok"
    assert "cannot run them without a GPU" in rtx.detail
    (state,) = (s for s in states if s.flavor == "tensorrt-rtx")
    import tensorrt_rtx

    assert state.version == tensorrt_rtx.__version__


def test_no_tensorrt_on_a_cpu_machine_is_not_missing(fake_machine, fake_tensorrt) -> None:
    fake_tensorrt()
    assert tensorrt.check_tensorrt(fake_machine(), NO_GPU) == ([], [])


def test_fake_tensorrt_that_works(fake_jetson, fake_tensorrt) -> None:
    fake_tensorrt(tensorrt=FAKE_MODULE.format(body="pass"))
    (check,), (state,) = tensorrt.check_tensorrt(fake_jetson(), ORIN)
    assert (check.status, check.detail) == ("ok", "10.3.0.26, builds and runs engines")
    assert (state.flavor, state.version) == ("tensorrt", "10.3.0.26")


@pytest.mark.parametrize(
    ("state", "fix"), [(ORIN, "pip install tensorrt-cu12"), (THOR, "pip install tensorrt-cu13")]
)
def test_missing_on_a_pc_is_pip(fake_machine, fake_tensorrt, state: CudaState, fix: str) -> None:
    fake_tensorrt()
    (check,), _ = tensorrt.check_tensorrt(fake_machine(), state)
    assert (check.status, check.fix) == ("missing", fix)


def test_missing_on_a_fake_jetson_is_never_pip(fake_jetson, fake_tensorrt, monkeypatch) -> None:
    fake_tensorrt()
    (check,), _ = tensorrt.check_tensorrt(fake_jetson(), ORIN)
    assert "sudo apt-get install nvidia-jetpack" in check.fix
    there = {"/usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""}
    machine = fake_jetson(files=there)
    monkeypatch.setattr(tensorrt.sys, "prefix", "/venv")
    (check,), _ = tensorrt.check_tensorrt(machine, ORIN)
    assert "-m venv --system-site-packages" in check.fix
    monkeypatch.setattr(tensorrt.sys, "prefix", tensorrt.sys.base_prefix)
    (check,), _ = tensorrt.check_tensorrt(machine, ORIN)
    assert "/usr/bin/python3" in check.fix


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            "libnvdla_compiler.so: cannot open shared object file",
            "sudo apt-get install nvidia-l4t-dla-compiler",
        ),
        ("libnvinfer.so.10: cannot open shared object file", "--reinstall python3-libnvinfer"),
    ],
)
def test_fake_tensorrt_that_does_not_import_on_a_jetson(
    fake_jetson, fake_tensorrt, error: str, fix: str
) -> None:
    fake_tensorrt(tensorrt=f"raise ImportError({error!r})")
    (check,), states = tensorrt.check_tensorrt(fake_jetson(), ORIN)
    assert (check.status, states) == ("broken", [])
    assert error in check.detail
    assert fix in check.fix


def test_fake_tensorrt_whose_builder_fails_shows_the_logged_error(
    fake_jetson, fake_machine, fake_tensorrt
) -> None:
    body = 'logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35"); raise TypeError("null")'
    fake_tensorrt(tensorrt=FAKE_MODULE.format(body=body))
    (check,), _ = tensorrt.check_tensorrt(fake_jetson(), ORIN)
    assert check.status == "broken"
    assert "CUDA initialization failure with error: 35" in check.detail
    assert "it hides JetPack's" in check.fix  # the module lies in a folder of its own, as pip's does
    (check,), _ = tensorrt.check_tensorrt(fake_jetson(), CudaState(works=False, version="12.6"))
    assert check.fix == "fix the CUDA driver (above) first"


def test_fake_tensorrt_on_a_machine_without_a_gpu_has_nothing_to_mend(fake_machine, fake_tensorrt) -> None:
    fake_tensorrt(tensorrt=FAKE_MODULE.format(body='raise TypeError("null")'))
    (check,), states = tensorrt.check_tensorrt(fake_machine(), NO_GPU)
    assert (check.status, check.fix, states) == ("ok", "", [])


def test_fake_tensorrt_that_crashes_is_a_line(fake_jetson, fake_tensorrt) -> None:
    fake_tensorrt(tensorrt="import os; os.kill(os.getpid(), 11)")
    (check,), _ = tensorrt.check_tensorrt(fake_jetson(), ORIN)
    assert (check.status, check.detail) == ("broken", "crashed with signal 11")
