"""Computes numbers from a run's configuration and a step."""
