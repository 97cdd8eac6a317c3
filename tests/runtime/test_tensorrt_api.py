"""TensorRT's module: import errors, versions, the log. The fake TensorRT where none is installed."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_tensorrt import FakeGpu, Severity

from edge_asr.errors import EngineError, MissingDependencyError
from edge_asr.runtime.engine import api as tensorrt_api
from edge_asr.runtime.engine.api import create_logger, load_tensorrt, version_of


def _importing(monkeypatch: pytest.MonkeyPatch, result: Exception | types.ModuleType) -> None:
    real = importlib.import_module

    def import_module(name: str, *rest: Any) -> types.ModuleType:
        if name not in ("tensorrt", "tensorrt_rtx"):
            return real(name, *rest)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize(
    ("flavor", "told"),
    [
        ("tensorrt", r"tensorrt is needed .* pip install 'edge-asr\[tensorrt-cu13\]'"),
        ("tensorrt-rtx", "tensorrt_rtx is needed .* pip install tensorrt-rtx-cu13"),
    ],
)
def test_not_installed(flavor: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = flavor.replace("-", "_")
    _importing(monkeypatch, ModuleNotFoundError(f"No module named {name!r}", name=name))
    with pytest.raises(MissingDependencyError, match=told):
        load_tensorrt(flavor)


def test_on_a_jetson_it_comes_from_jetpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _importing(monkeypatch, ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt"))
    monkeypatch.setattr(tensorrt_api, "NV_TEGRA_RELEASE", tmp_path)
    with pytest.raises(MissingDependencyError, match=r"JetPack .*--system-site-packages") as caught:
        load_tensorrt("tensorrt")
    assert "edge-asr[tensorrt" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        ImportError("libnvinfer.so.10: cannot open shared object file"),
        ModuleNotFoundError("No module named 'tensorrt.tensorrt'", name="tensorrt.tensorrt"),
        RuntimeError("stub"),
        types.ModuleType("tensorrt"),  # a folder of that name
    ],
)
def test_installed_and_broken(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _importing(monkeypatch, fault)
    with pytest.raises(EngineError, match=r"tensorrt is installed but does not load .*edge-asr doctor"):
        load_tensorrt("tensorrt")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tensorrt")
    module.__version__ = "10.13.3.9"  # type: ignore[attr-defined]
    assert version_of(module) == "10.13.3.9"
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    assert version_of(module) == "10.3.0"  # no library here to ask
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return types.SimpleNamespace(getInferLibBuildVersion=lambda: 30)

    monkeypatch.setattr(tensorrt_api.ctypes, "CDLL", load)
    assert version_of(module) == "10.3.0.30"
    assert asked == ["libnvinfer.so.10"]


def test_the_build_number_of_the_real_rtx_library() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
    short = types.ModuleType("tensorrt_rtx")
    short.__version__ = real.__version__.rsplit(".", 1)[0]  # type: ignore[attr-defined]
    assert short.__version__.count(".") == 2  # type: ignore[attr-defined]
    assert version_of(short) == real.__version__ == version_of(real)


@pytest.mark.parametrize("real", [False, True])
def test_the_log_goes_to_logging_and_its_errors_are_kept(
    real: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if real:
        trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
        severities = trt.ILogger.Severity
    else:
        FakeGpu().install(monkeypatch)
        trt, severities = load_tensorrt("tensorrt"), Severity
    log = create_logger(trt)
    assert create_logger(trt) is log
    log.take_errors()  # of other tests
    with caplog.at_level(logging.DEBUG):
        for severity in Severity:
            log.log(getattr(severities, severity.name), f" about {severity.name}\n")
    levels = {record.getMessage().split()[-1]: record.levelname for record in caplog.records}
    assert levels == {
        "INTERNAL_ERROR": "INFO",
        "ERROR": "INFO",
        "WARNING": "WARNING",
        "INFO": "DEBUG",
        "VERBOSE": "DEBUG",
    }
    assert log.take_errors() == ["about INTERNAL_ERROR", "about ERROR"]
    assert log.take_errors() == []
    for n in range(100):
        log.log(severities.ERROR, str(n))
    assert log.take_errors() == [str(n) for n in range(80, 100)]
