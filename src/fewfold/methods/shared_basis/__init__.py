"""Shared basis: neighbouring layers' weights of one kind in one basis, coefficients of their own."""
