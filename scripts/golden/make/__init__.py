"""Makers of the fixtures in tests/data/golden: each runs the original project's own code.

One module a project, run from scripts/ (`python -m golden.make.hf_parakeet ../tests/data/golden`) in an
environment of its own that has the project, in the version the module names, and numpy, torch and soundfile.
`common` has what they share. The models are small and their weights random, of a seed each: nothing is
downloaded, nothing trained.
"""
