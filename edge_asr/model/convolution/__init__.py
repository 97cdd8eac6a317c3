"""The convolution module of a Conformer block, in the variants of each project."""
