"""Tokenizing at a multiple of the libraries: texts cut into pieces, each encoded once."""
