"""From one class of model to another that computes the same."""
