"""Live recognition: sources of sound, end-pointing, partials, events."""
