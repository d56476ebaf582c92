"""Compares a small copy of a run, in each layout that some local processes can form, with one process."""
