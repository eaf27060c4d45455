"""Settings that were renamed: their old names go on working until version 0.3."""

from __future__ import annotations

from collections.abc import Mapping

from shards.launcher import process_rank
from shards.log import LOG

LAST_VERSION = "0.3"

# Old key → key.
KEYS = {
    "data.resident": "data.in_memory",
    "data.split_fraction": "data.train_fraction",
}

# Key → old value → value.
VALUES = {
    "features.preset": {"seed256": "cpjku22_256", "seed128": "passt_128"},
}

_warned: set[str] = set()


def current(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings, by dotted key, under today's names of keys and values."""
    now = {KEYS.get(key, key): value for key, value in settings.items()}
    for key, values in VALUES.items():
        if isinstance(value := now.get(key), str):
            now[key] = values.get(value, value)
    return now


def current_key(key: str) -> str:
    """Return today's name of a key that a user gave; warn once if it was renamed."""
    now = KEYS.get(key, key)
    if now != key:
        _warn(f"{key} is now {now}")
    return now


def current_value(key: str, value: str) -> str:
    """Return today's name of a value that a user gave for a key; warn once if it was renamed."""
    now = VALUES[key].get(value, value)
    if now != value:
        _warn(f"{key}={value} is now {now}")
    return now


def _warn(change: str) -> None:
    if change not in _warned and process_rank() == 0:
        _warned.add(change)
        LOG.warning(f"{change}: the old name goes away in version {LAST_VERSION}")
