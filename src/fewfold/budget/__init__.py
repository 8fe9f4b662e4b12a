"""Budgets: what things cost, and which sizes keep within a limit."""
