"""Grades a model's answers with a strict verdict and the paper's (docs/grading.md)."""
