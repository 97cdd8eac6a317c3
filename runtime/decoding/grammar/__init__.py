"""Grammars: the phrases that an application knows, as a decoder that takes one of them or none."""
