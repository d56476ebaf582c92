"""THE LOOP and what it leaves behind: metrics, checkpoints, a status."""
