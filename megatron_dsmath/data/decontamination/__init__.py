"""Removes documents that share text with a benchmark (DeepSeekMath, section 2.1.1)."""
