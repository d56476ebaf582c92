"""CONVERSATIONS TO BATCHES: rows in many forms to tokens, loss masks, and sequences packed anew each epoch."""
