"""Low rank: one matrix as the product of two narrow ones."""
