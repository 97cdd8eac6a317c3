"""Parts of scripts/check_golden.py: fixtures of other projects, and how our code compares with them."""
