"""Training from scratch through transformers.Trainer: masked language models, and whatever has a loss."""
