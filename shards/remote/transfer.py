"""Bytes that come over a network: how long is waited for them, and how often they are asked for."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from shards.errors import UserError

Result = TypeVar("Result")

# A try has failed when it brings less than LEAST bytes in SILENCE seconds. What comes faster than that
# may take as long as it likes.
SILENCE = 30.0
LEAST = 1024
# Seconds before each further try; they begin anew when a try brought something. A server that says
# nothing is reported after about two and a half minutes.
PAUSES = (1.0, 5.0, 25.0)


class BrokenError(Exception):
    """One try failed, and another may not.

    Attributes:
        wait: for how long the server wants peace, in s.
        advice: what to do if the others fail too; empty if there is nothing special.
    """

    def __init__(self, reason: str, wait: float = 0.0, advice: str = "") -> None:
        super().__init__(reason)
        self.wait = wait
        self.advice = advice


class Answer(NamedTuple):
    """The bytes of a file that are on their way.

    Attributes:
        blocks: of bytes, to the end of the file; raises BrokenError.
        offset: the place of the first one in the file.
        total: the length of the whole file in bytes, if it is known.
        close: ends it.
    """

    blocks: Iterator[bytes]
    offset: int
    total: int | None
    close: Callable[[], Any]


def repeated(
    url: str, attempt: Callable[[], Result], reached: Callable[[], int], advice: str
) -> Result:
    """Tries again and again, until it has failed too often without bringing anything.

    Args:
        url: what it is about.
        attempt: one try; a failure is a BrokenError.
        reached: how many bytes there are.
        advice: what to do if all fail.

    Raises:
        UserError: all tries failed.
    """
    furthest, failures = reached(), 0
    while True:
        try:
            return attempt()
        except BrokenError as error:
            if reached() >= furthest + LEAST:
                furthest, failures = reached(), 0
            if failures == len(PAUSES):
                what = f"{error} (tried {failures + 1} times)"
                raise UserError(f"{url}: {what}; {error.advice or advice}") from error
            time.sleep(max(PAUSES[failures], error.wait))
            failures += 1


def within(seconds: float, call: Callable[..., Result], *arguments: Any) -> Result:
    """Returns what a call returns, which may be one that cannot be interrupted.

    Raises:
        BrokenError: it was not done in time. It is left to itself, on a thread that ends with the
            process.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call(*arguments))
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise BrokenError(f"timed out: nothing came for {seconds:g} s")
    return results[0]
