"""Sweeps: many runs over a space of settings, as Weights & Biases describes them, without a server."""
