"""Progress of what takes long: a bar on a terminal, lines of the log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shards.log import LOG

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(what: str, total: int, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows rate and remaining time while the block runs, if the log is at INFO and `show` is set.

    Yields:
        A function that advances the count.
    """
    if not show or total == 0 or not LOG.isEnabledFor(logging.INFO):
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        yield _lines(what, total)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _lines(what: str, total: int) -> Callable[[int], None]:
    start = printed = time.monotonic()
    count = 0

    def advance(done: int) -> None:
        nonlocal count, printed
        count += done
        now = time.monotonic()
        if count < total and now - printed < SECONDS_BETWEEN_LINES:
            return
        printed = now
        rate = count / max(now - start, 1e-9)
        left = (total - count) / rate
        LOG.info(f"{what}: {count:,} of {total:,}, {rate:,.0f}/s, {left:.0f} s left")

    return advance
