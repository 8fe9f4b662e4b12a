"""Dense: the weight itself, kept in a smaller dtype."""
