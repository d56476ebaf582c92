"""Tokenizers, fast encoding, and the tokenize command."""
