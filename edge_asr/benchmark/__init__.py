"""`edge-asr bench` as a library: measures what a bundle costs here, and proves that the runs happened.

`run.py` has the order of things, `options.py` what is asked for, `timing.py` how everything is timed, also by
the scripts. What is measured: `stages.py` and `offline.py` (time by stage), `fresh_process.py` (cold start,
peak memory, the texts to prove against), `paced_source.py` and `streams.py` (real-time pace), `power.py`,
`clocks.py`, `gpu.py`, `provenance.py`, `accuracy.py`; the speech comes from `audio_clips.py`. What was
measured: `schema.py`, summarized by `statistics.py`. What is made of it: `tables.py`,
`table.py`, `report.py`, `plots.py`, `compare.py`. Models without weights: `random_models.py`.

A number that could not be measured is null beside a reason, never an estimate. Needs no PyTorch, except for
random models. What this package does not do: judge (no bar is here; `scripts/bench_int8.py` has some).
"""
