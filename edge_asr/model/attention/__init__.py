"""Self-attention with the position encodings of each project: one file each."""
