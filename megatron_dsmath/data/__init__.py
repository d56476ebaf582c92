"""Text to batches: documents, tokens, .bin/.idx files, samples, the blend. Integers and numpy, never torch."""
