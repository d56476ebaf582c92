"""The report of a run: one HTML page and its figures, made from the run's directory."""
