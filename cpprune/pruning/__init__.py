"""Cutting channels: how they are scored, how many go, when, and on all ranks alike."""
