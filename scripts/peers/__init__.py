"""Parts of scripts/bench_peers.py: the same weights in edge-asr and in what it is compared with."""
