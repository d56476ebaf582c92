"""Evaluation: a model answers benchmarks, its programs run in the sandbox, and its answers are graded."""
