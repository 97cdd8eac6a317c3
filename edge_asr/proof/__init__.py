"""Compares two models on the same inputs: the cases, the comparison, the clips, the stages of a run.

It stands below everything that is compared; `edge_asr.export` and `edge_asr.calibration` use it.
"""
