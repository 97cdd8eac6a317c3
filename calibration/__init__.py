"""Calibration: the calibration set, the quantiser and its report. Empty until INT8 is built."""
