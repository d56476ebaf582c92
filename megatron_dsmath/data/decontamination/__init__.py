"""What a corpus shares with the benchmarks, found and left out."""
