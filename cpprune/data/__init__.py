"""Training batches of this rank: loading, clips kept in memory, prefetching to the GPU."""
