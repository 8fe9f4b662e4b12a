"""Checkpoints: the structure, loading, saving, and plain models again."""
