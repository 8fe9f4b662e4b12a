"""Find, read and replace the weights of a model."""
