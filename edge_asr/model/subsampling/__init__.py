"""From feature frames to encoder frames: strided convolutions in the variants of each project."""
