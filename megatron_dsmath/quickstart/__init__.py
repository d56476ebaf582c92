"""A complete run in miniature: corpora, a tokenizer, training, an export and a report."""
