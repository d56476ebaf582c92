"""The training loop and its outputs: metrics, checkpoints and a status."""
