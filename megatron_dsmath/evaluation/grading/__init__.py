"""Whether a model's answer is right: strictly, and as the paper's own protocol sees it (docs/grading.md)."""
