"""What a machine can run, area by area; `edge-asr doctor` prints it.

`report.py` has the order; `check.py` what one line is; `probe.py` and `machine.py` how a line is found
out. One file an area: `environment` (Python, packages, extras), `inference` (onnxruntime), `cuda`
(driver, GPUs, cuda-bindings), `tensorrt`, `jetson` (JetPack, power mode), `audio`, `model`, `engines`.
What this package does not do: install or change anything.
"""
