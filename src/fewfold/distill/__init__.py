"""Recovery: a compressed model learns from the dense one."""
