"""The whole story in miniature: corpora and a tokenizer made on the spot, a run, its report."""
