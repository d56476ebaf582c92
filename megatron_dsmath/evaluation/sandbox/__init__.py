"""A model's programs, run where they can do no harm (docs/sandbox.md)."""
