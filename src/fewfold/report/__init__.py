"""Tables and pictures of measured rows."""
