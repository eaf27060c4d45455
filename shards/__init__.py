"""Datasets on disk: deterministic tar shards, read by position, ordered by a pure function."""

from shards.errors import InputError, UserError
from shards.reader import Dataset, open_dataset
from shards.split import Split

__all__ = ["Dataset", "InputError", "Split", "UserError", "open_dataset"]
