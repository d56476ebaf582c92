"""The processes around the training loop: start, ranks, stop requests, watchdog, lock, attempts."""
