"""Exports and proves the attention decoder of a checkpoint."""
