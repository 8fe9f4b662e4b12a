"""Captions for images: a small image encoder and a transformer decoder."""
