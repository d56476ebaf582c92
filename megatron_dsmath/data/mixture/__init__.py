"""Computes the tokens of each sample of a run from the seed, the weights and the sample's number."""
