"""Shared factors: all slices of a group between two common factors, one core each."""
