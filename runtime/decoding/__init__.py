"""From log-probs to tokens."""
