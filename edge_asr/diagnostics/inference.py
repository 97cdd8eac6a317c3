"""Checks that onnxruntime is installed once, and which of its providers really load and run a model.

What this file does not do: measure (`edge-asr bench` does).
"""

from __future__ import annotations

from edge_asr.diagnostics.check import Check, first_line, split_installed
from edge_asr.diagnostics.machine import Machine
from edge_asr.diagnostics.probe import run_probe

# y = x + x of one float; onnx 1.23.2, opset 13, ir_version 8, written with onnx.helper.make_model.
PROBE = """
import base64, contextlib, json, sys
import numpy, onnxruntime
onnxruntime.set_default_logger_severity(4)
if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
    with contextlib.redirect_stdout(sys.stderr):  # loads CUDA from wheels, and prints what it does not find
        getattr(onnxruntime, "preload_dlls", lambda: None)()
model = base64.b64decode(
    "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
results = {}
for provider in onnxruntime.get_available_providers():
    if provider == "AzureExecutionProvider":
        continue  # calls a cloud service, runs nothing here
    try:
        session = onnxruntime.InferenceSession(model, providers=[provider])
        used = session.get_providers()[0]
        value = session.run(None, {"x": numpy.ones(1, numpy.float32)})[0][0]
        results[provider] = "" if used == provider and value == 2 else f"fell back to {used}"
    except Exception as error:
        results[provider] = str(error)
print(json.dumps({
    "version": onnxruntime.__version__, "file": onnxruntime.__file__, "providers": results,
}))
"""


def check_onnxruntime(machine: Machine) -> list[Check]:
    """Check onnxruntime, and each of its providers by loading and running a trivial model."""
    installed, _ = split_installed(["onnxruntime", "onnxruntime-gpu"])
    extra = "jetson" if machine.is_jetson else "cpu"
    if not installed:
        # No onnxruntime-gpu wheel has kernels for a Jetson's GPU (1.31.1: sm_89, 90, 120, 121, and no PTX).
        other = "" if machine.is_jetson else " (or 'edge-asr[gpu]' for an NVIDIA GPU)"
        return [
            Check(
                name="onnxruntime",
                status="missing",
                detail="nothing here can run a model",
                fix=f"pip install 'edge-asr[{extra}]'{other}",
                required=True,
            )
        ]
    package = installed[0].split()[0]
    reinstall = f"pip install --force-reinstall {package}"
    result, error = run_probe(PROBE)
    if len(installed) > 1:
        other = "" if machine.is_jetson else " or 'edge-asr[gpu]'"
        reinstall = f"pip uninstall onnxruntime onnxruntime-gpu; pip install 'edge-asr[{extra}]'{other}"
        # Both write one module; which of them is imported depends on the order of paths and installations.
        used = error if result is None else f"{result['version']} of {result['file']} is imported"
        detail = f"{' and '.join(installed)} are installed, and are the same Python module: {used}"
        checks = [Check(name="onnxruntime", status="broken", detail=detail, fix=reinstall, required=True)]
    elif result is None:
        return [Check(name="onnxruntime", status="broken", detail=error, fix=reinstall, required=True)]
    else:
        checks = [Check(name="onnxruntime", status="ok", detail=installed[0], required=True)]
    if result is None:
        return checks
    for provider, problem in result["providers"].items():
        gpu = (
            "install the CUDA, cuDNN and TensorRT that this onnxruntime-gpu requires, "
            f"or use 'edge-asr[{extra}]'"
        )
        if machine.is_jetson:
            gpu = (
                "pip uninstall onnxruntime-gpu, then pip install 'edge-asr[jetson]': no onnxruntime wheel "
                "has kernels for Orin or Thor; `edge-asr build` makes engines for their GPU"
            )
        checks.append(
            Check(
                name=provider,
                status="broken" if problem else "ok",
                detail=first_line(problem) or "loads and runs a model",
                fix="" if not problem else reinstall if provider.startswith("CPU") else gpu,
            )
        )
    return checks
