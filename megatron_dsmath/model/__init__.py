"""The decoder, its loss, and the table of its parameters."""
