"""Calibration: statistics of a model on real inputs."""
