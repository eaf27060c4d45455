"""Reading a JSON-lines file while another process appends to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.5


def follow(path: Path, finished: threading.Event) -> Iterator[dict[str, object]]:
    """Yield the lines of a JSON-lines file as they come, until `finished` is set and all are read."""
    with path.open() as file:
        rest = ""
        while True:
            last = finished.is_set()
            *lines, rest = (rest + file.read()).split("\n")
            yield from map(json.loads, lines)
            if last:
                return
            finished.wait(POLL_SECONDS)
