"""Golden fixtures: what other projects' own code gave, and how ours compares (see scripts/check_golden.py)."""
