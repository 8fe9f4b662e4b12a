"""Embedding auto-encoder: a token table as short latents and one decoder, fitted for direction."""
