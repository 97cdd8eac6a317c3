"""Live recognition: sources of sound, endpointing, partials, events."""
