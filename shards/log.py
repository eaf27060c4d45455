"""What is said while something is done, through Python's logging; commands print it as lines."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOG = logging.getLogger("cpprune")


class _Lines(logging.Handler):
    """Prints each message as a line on standard error, wherever that is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message; unlike with other handlers, an error is the caller's."""
        prefix = "cpprune: warning: " if record.levelno >= logging.WARNING else ""
        print(f"{prefix}{record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def printed_log() -> Iterator[None]:
    """Inside the block, the log is printed on standard error, and progress is shown."""
    before = LOG.handlers, LOG.level, LOG.propagate
    LOG.handlers, LOG.propagate = [_Lines()], False
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.handlers, LOG.propagate = before[0], before[2]
        LOG.setLevel(before[1])
