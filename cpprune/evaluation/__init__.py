"""Predictions, metrics, complexity and statistics over seeds."""
