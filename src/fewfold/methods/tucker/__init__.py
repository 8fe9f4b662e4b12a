"""Tucker: shared factors, and cores mixed from a bank."""
