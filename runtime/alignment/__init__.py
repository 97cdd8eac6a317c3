"""Forced alignment: when each word of a given text is said in a recording of any length."""
