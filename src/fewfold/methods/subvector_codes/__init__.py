"""Tables and linear weights as codes: integers that point into codebooks of sub-vectors."""
