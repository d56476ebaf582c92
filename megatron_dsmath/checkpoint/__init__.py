"""WHAT A RUN LEAVES AND STARTS FROM: checkpoints that are whole or absent, and Hugging Face folders in and out."""
