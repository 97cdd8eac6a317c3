"""The real Python bindings of TensorRT, read on a machine without a GPU: classes, enumerators and signatures.

NVIDIA's bindings are small wheels beside the gigabyte of libraries that they link to. With empty libraries in
their place they import anywhere, though nothing can be built or run. Each version is read in its own process.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pypi import package_folder

#: By the version whose interface it is: JetPack 6.0, 6.1 and 6.2, 7.0 and 7.1, 7.2.2.
WHEELS = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.13": "tensorrt-cu13-bindings==10.13.3.9",
    "11.4": "tensorrt-cu13-bindings==11.4.0.106",
}
VERSIONS = (*WHEELS, "RTX")

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")
_SYMBOLS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion
getBuilderPluginRegistry getPluginRegistry initLibNvInferPlugins
_ZN11nvuffparser15createUffParserEv _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi
_ZN14nvcaffeparser117createCaffeParserEv _ZN14nvcaffeparser123shutdownProtobufLibraryEv
"""
"""What the bindings link to, the last four only those of 8.6; each returns null."""

_READ = """
import ctypes, enum, importlib, importlib.util, inspect, json, sys
name, binding, *libraries = sys.argv[1:]
for library in libraries:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
if binding:
    spec = importlib.util.spec_from_file_location(name, binding)
    trt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trt)
else:
    trt = importlib.import_module(name)
classes = {}
for key, value in vars(trt).items():
    if not inspect.isclass(value):
        continue
    classes[key] = {
        member: {
            "settable": getattr(inspect.getattr_static(value, member), "fset", None) is not None,
            "doc": getattr(value, member).__doc__ or "",
        }
        for member in {*dir(value)} if member == "__init__" or not member.startswith("_")
    }
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        pass
failures = {}
if binding:
    for key in ("Builder", "Runtime"):
        try:
            getattr(trt, key)(Logger())
        except Exception as error:
            failures[key] = [type(error).__name__, str(error)]
print(json.dumps({"version": getattr(trt, "__version__", ""), "classes": classes, "failures": failures}))
"""


class Bindings:
    """What one version has.

    Attributes:
        classes: members by class and name, each with its docstring; enumerators are members too.
        failures: type and message of what Builder and Runtime raise if the library gives them nothing.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.classes: dict[str, dict[str, dict[str, Any]]] = found["classes"]
        self.failures: dict[str, list[str]] = found["failures"]

    def has(self, owner: str, name: str) -> bool:
        """Tell whether a class (or, with "", the module) has a member."""
        return name in (self.classes.get(owner, {}) if owner else self.classes)

    def accepts(self, owner: str, name: str, n_positional: int, keywords: set[str]) -> bool:
        """Tell whether an overload of a method takes so many arguments, beside self, and these keywords."""
        method = "__init__" if not owner else name
        documentation = self.classes[owner or name][method]["doc"]
        return any(_fits(overload, n_positional, keywords) for overload in _overloads(documentation, method))


def _overloads(documentation: str, name: str) -> list[list[tuple[str, bool]]]:
    """Names of the parameters behind self, and whether they have a default, of each overload."""
    found = []
    for match in re.finditer(rf"(?:^|\d+\. ){name}\((self: [^\n]*)\) ->", documentation, re.MULTILINE):
        depth, parts = 0, [""]
        for sign in match[1]:
            depth += (sign in "([{<") - (sign in ")]}>")
            if sign == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += sign
        found.append([(part.split(":")[0].strip(), "=" in part) for part in parts[1:]])
    return found


def _fits(parameters: list[tuple[str, bool]], n_positional: int, keywords: set[str]) -> bool:
    rest = parameters[n_positional:]
    needed = {name for name, has_default in rest if not has_default}
    return n_positional <= len(parameters) and needed <= keywords <= {name for name, _ in rest}


def read_bindings(config: pytest.Config, version: str, folder: Path) -> Bindings:
    """Read one of `VERSIONS`; skip the test where it cannot be had."""
    if version == "RTX":
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
        command = ["tensorrt_rtx", ""]
    else:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("needs a C compiler to make empty libraries")
        (binding,) = package_folder(config, WHEELS[version]).glob("tensorrt_bindings/tensorrt.so")
        major = version.partition(".")[0]
        source = folder / "empty.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS.split()))
        command = ["tensorrt", str(binding)]
        for name in _LIBRARIES:
            library = folder / f"lib{name}.so.{major}"
            options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library]
            subprocess.run([compiler, *options, source], check=True)
            command.append(str(library))
    done = subprocess.run([sys.executable, "-c", _READ, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return Bindings(json.loads(done.stdout.splitlines()[-1]))
