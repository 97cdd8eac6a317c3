"""Turns feature frames into encoder frames: strided convolutions in the variants of each project."""
