"""Whether a model's answer is right: a strict verdict, and the paper's (docs/grading.md)."""
