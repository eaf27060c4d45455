"""A process pool for jobs; its workers end with the process that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from shards.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def cpu_count() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yields (job number, result) as the jobs finish, in any order.

    Processes are spawned, not forked, because the caller may have threads. With one worker or one job,
    the jobs run in this process. When the caller stops iterating, waiting jobs are cancelled and running
    ones are awaited.

    Raises:
        UserError: a worker process was killed.
    """
    if workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs):
            yield number, function(job)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_end_with_parent)
    try:
        numbers: dict[Future[Result], int] = {}
        upcoming = iter(enumerate(jobs))
        # Only a few jobs are submitted at a time: cancelling is quick and memory stays small.
        for number, job in upcoming:
            numbers[pool.submit(function, job)] = number
            if len(numbers) >= 2 * workers:
                break
        while numbers:
            done, _ = wait(numbers, return_when=FIRST_COMPLETED)
            for future in done:
                yield numbers.pop(future), future.result()
                for number, job in upcoming:
                    numbers[pool.submit(function, job)] = number
                    break
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out; "
            "start again with fewer --workers, finished parts are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    # When the parent is killed, its workers would wait forever on a queue that nobody writes to.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
