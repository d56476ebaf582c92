"""What every room does with files and processes: atomic writes, whole directories, lines, workers, progress."""
