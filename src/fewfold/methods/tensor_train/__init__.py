"""Tensor train: slices as trains of small cores, all but the first of them shared."""
