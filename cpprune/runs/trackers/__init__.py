"""Experiment trackers, and the process that feeds them: `python -m cpprune.runs.trackers`."""
