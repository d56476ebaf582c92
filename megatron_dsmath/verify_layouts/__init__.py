"""EVERY LAYOUT EQUAL: a run in miniature, in each layout that some local processes can form, against one process."""
