"""Hyper-parameter sweeps in the format of Weights & Biases, without a server."""
