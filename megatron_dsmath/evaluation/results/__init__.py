"""The scores of an evaluation, and the pages that show them."""
