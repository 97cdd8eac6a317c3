"""`python -m edge_asr`, the same as the `edge-asr` script."""

from edge_asr.cli.main import main

if __name__ == "__main__":
    main()
