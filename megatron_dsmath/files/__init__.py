"""Files and processes: atomic files and directories, lines, worker processes, signals, progress."""
