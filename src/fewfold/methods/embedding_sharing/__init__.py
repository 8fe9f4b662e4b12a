"""Embedding sharing: hidden weights are carved out of the token table (EPS), or of its linear expansion (VEPS)."""
