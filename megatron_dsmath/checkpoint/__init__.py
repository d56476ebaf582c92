"""Checkpoints, and the conversion from and to Hugging Face folders and Megatron-LM checkpoints."""
