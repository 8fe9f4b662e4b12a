"""The methods: one folder each, with config.py, fit.py and modules.py."""
