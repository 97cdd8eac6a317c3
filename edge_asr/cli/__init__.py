"""The command line: `main.py` is the front door, each other command file is one command.

Nothing here holds logic that a Python caller would miss: a command parses, calls the library
and prints. Heavy imports stand inside the function bodies, so that `--help` is instant.
"""
