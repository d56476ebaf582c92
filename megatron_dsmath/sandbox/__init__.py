"""Runs programs that a model wrote, confined (docs/sandbox.md)."""
