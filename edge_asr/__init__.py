"""edge-asr: Conformer speech recognition from PyTorch to the edge, proven at every step.

`edge_asr.runtime` runs bundles without PyTorch; `edge_asr.export` makes and proves them;
`edge_asr.training` trains. Importing this package imports none of them.
"""

import os

# Unless this is set before onnxruntime is imported, it (1.32) keeps a device id and a queue of events in
# ~/.cache/Microsoft and looks up a host for them. Whatever of edge_asr a process uses, it comes through here
# first; child processes inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
__all__ = ["__version__"]
