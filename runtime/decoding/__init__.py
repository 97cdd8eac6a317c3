"""Decoding: turns log-probs into tokens."""
