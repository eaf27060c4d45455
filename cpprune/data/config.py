"""Settings of the dataset and of how its clips are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cpprune.settings.choices import check_choices


@dataclass(kw_only=True)
class DataConfig:
    """Dataset, and how its clips are read."""

    path: str = "data/tau2022"
    """dataset folder, written by `cpprune shards build`, or its URL: s3://, gs://, https://, …"""
    cache: str | None = None
    """folder for the shards of a remote dataset (default: $CPPRUNE_CACHE, or ~/.cache/cpprune)"""
    cache_bytes: int = 0
    """most bytes that the shards in the cache may take; 0 is as many as its disk has"""
    train_fraction: float = 1.0
    """fraction of the training recordings to train on, above 0; a smaller fraction is a subset of a
    larger one"""
    only: str | None = None
    """train and validate only on the clips that have this value in a column of the dataset, such as
    device=a (default: on all)"""
    workers: int = 0
    """processes that read ahead clips that are not kept in memory; 0 is enough for a local disk"""
    in_memory: Literal["auto", "off", "host", "device"] = "auto"
    """where training and validation clips are kept in memory: device (all of them on every GPU), host
    (one copy a node, shared by its processes) or off; auto: device, else host, if they take at most
    half of the memory that is free there"""
    record_ids: bool = False
    """write the clips of every batch of this rank to ids/rank-N.jsonl in the run folder"""

    def __post_init__(self) -> None:
        if not 0 < self.train_fraction <= 1:
            raise ValueError(
                f"data.train_fraction={self.train_fraction}: must be above 0 and at most 1"
            )
        if self.only is not None and not all(self.only.partition("=")):
            raise ValueError(
                f"data.only={self.only}: must be a column and a value, such as device=a"
            )
        for name in ("workers", "cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name}={getattr(self, name)}: must not be negative")
        check_choices(self, "data")
