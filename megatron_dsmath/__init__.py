"""A Megatron-style trainer that reproduces DeepSeekMath, from raw JSONL to a Hugging Face folder."""

__version__ = "0.1.0"
