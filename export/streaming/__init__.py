"""The streaming graph: its geometry, its export, and its proof against the whole clip."""
