"""Building a dataset: from a source's clips to tar shards, index and manifest."""
