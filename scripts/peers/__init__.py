"""Parts of scripts/bench_peers.py: the same weights in edge-asr and in what it is compared with."""

import edge_asr  # noqa: F401 - switches onnxruntime's telemetry off before a peer imports it
