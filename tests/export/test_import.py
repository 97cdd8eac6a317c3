"""Importing the package needs none of the heavy modules, so that a missing one is named when it is used."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
for module in ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "safetensors", "lhotse"):
    sys.modules[module] = None
import edge_asr.export
import edge_asr.cli.export
from edge_asr.errors import MissingDependencyError
try:
    edge_asr.export.export_bundle("tiny-en", "/nonexistent-edge-asr/bundle")
except MissingDependencyError as error:
    print(error)
"""


def test_import_without_torch_and_onnx_then_one_clear_error() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "pip install 'edge-asr[export]'" in result.stdout
    assert result.stdout.startswith("torch is needed here")
