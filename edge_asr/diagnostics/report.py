"""Runs all checks in the order of the report, and yields each as soon as it is known.

What this file does not do: print (edge_asr/cli/doctor.py does).
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_asr.diagnostics.audio import check_microphone
from edge_asr.diagnostics.check import Check
from edge_asr.diagnostics.cuda import check_cuda
from edge_asr.diagnostics.engines import check_engines
from edge_asr.diagnostics.environment import check_extras, check_python
from edge_asr.diagnostics.inference import check_onnxruntime
from edge_asr.diagnostics.jetson import check_jetson
from edge_asr.diagnostics.machine import Machine
from edge_asr.diagnostics.model import check_model, check_sample, check_self_test
from edge_asr.diagnostics.tensorrt import check_tensorrt


def run_checks(model: str | None = None, machine: Machine | None = None) -> Iterator[Check]:
    """Yield every line of the report.

    Args:
        model: the bundle whose files and engines are checked; None for the embedded model.
        machine: where to look for system files and programs; None for this machine.
    """
    machine = machine or Machine()
    yield from check_python()
    yield from check_onnxruntime(machine)
    yield from check_jetson(machine)
    cuda_checks, cuda = check_cuda(machine)
    yield from cuda_checks
    tensorrt_checks, libraries = check_tensorrt(machine, cuda)
    yield from tensorrt_checks
    yield from check_model(model)
    yield from check_engines(model, libraries)
    yield from check_sample()
    yield from check_self_test(model)
    yield from check_microphone()
    yield from check_extras()
