"""Batches for this rank: clips read ahead, in memory, or on the GPU."""
