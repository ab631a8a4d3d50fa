"""Worker processes: a cell that crashes or hangs costs one row."""
