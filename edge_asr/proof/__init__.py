"""Two models, the same inputs: the cases, the comparison, the clips, the stages of a run.

Stands below everything that is compared; `edge_asr.export` and `edge_asr.calibration` use it.
"""
