"""What a machine can run, area by area; `edge-asr doctor` prints it.

`report.py` holds the order, `check.py` defines a line, and `probe.py` and `machine.py` find facts out. Each
area has one file: `environment` (Python, packages, extras), `inference` (onnxruntime), `cuda` (driver, GPUs),
`tensorrt`, `jetson` (JetPack, power mode), `audio`, `model`, `engines`. What this package
does not do: install or change anything.
"""
