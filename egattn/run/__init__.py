"""A run of anything: directory, checkpoints, records, signals, processes, and the loop."""
