"""The command line: `main.py` is the entry point, and each other command file is one command.

Nothing here holds logic that a Python caller would miss: a command parses, calls the library and prints.
Heavy imports are inside the functions, so `--help` is instant.
"""
