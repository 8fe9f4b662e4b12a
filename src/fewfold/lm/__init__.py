"""Language models trained on running text: vocabularies, streams, the training loop, perplexity, n-grams."""
