"""Which tokens each sample of a run reads: pure functions of numbers."""
