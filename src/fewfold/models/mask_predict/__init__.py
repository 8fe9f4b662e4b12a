"""Non-autoregressive translation: all tokens at once, in a few rounds."""
