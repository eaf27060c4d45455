"""A run's folder: checkpoints, log, progress and experiment trackers."""
