"""What the methods across layers share: how weights fall into slices of one shape, and the modules that run them."""
