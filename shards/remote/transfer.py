"""Timeouts and retries of network transfers."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from shards.errors import UserError

Result = TypeVar("Result")

# An attempt fails when it receives less than MIN_BYTES in TIMEOUT seconds; otherwise a transfer may take
# as long as it needs.
TIMEOUT = 30.0
MIN_BYTES = 1024
# Seconds before each retry; the count starts anew when an attempt received something. A silent server
# is reported after about two and a half minutes.
RETRY_DELAYS = (1.0, 5.0, 25.0)


class TransientError(Exception):
    """One attempt failed; another may succeed.

    Attributes:
        wait: seconds that the server asks to wait before the next attempt.
        advice: what to do if all attempts fail; empty for the default advice.
    """

    def __init__(self, reason: str, wait: float = 0.0, advice: str = "") -> None:
        super().__init__(reason)
        self.wait = wait
        self.advice = advice


class Response(NamedTuple):
    """Response of a server: a file, from some offset on.

    Attributes:
        blocks: the bytes up to the end of the file; iterating may raise TransientError.
        offset: offset of the first byte in the file.
        total: size of the whole file in bytes, if known.
        close: closes the connection.
    """

    blocks: Iterator[bytes]
    offset: int
    total: int | None
    close: Callable[[], object]


def with_retries(
    url: str, attempt: Callable[[], Result], reached: Callable[[], int], advice: str
) -> Result:
    """Calls `attempt` until it succeeds or has failed too often without progress.

    Args:
        url: what is transferred; for the message.
        attempt: one attempt; raises TransientError if it fails.
        reached: returns the number of bytes received so far.
        advice: what to do if all attempts fail.

    Raises:
        UserError: all attempts failed.
    """
    furthest, failures = reached(), 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            if reached() >= furthest + MIN_BYTES:
                furthest, failures = reached(), 0
            if failures == len(RETRY_DELAYS):
                what = f"{error} (tried {failures + 1} times)"
                raise UserError(f"{url}: {what}; {error.advice or advice}") from error
            time.sleep(max(RETRY_DELAYS[failures], error.wait))
            failures += 1


def with_timeout(seconds: float, call: Callable[..., Result], *arguments: object) -> Result:
    """Returns the result of a call that cannot be interrupted, on a thread.

    Raises:
        TransientError: the call did not return in time. Its thread, a daemon, is abandoned.
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
        raise TransientError(f"timed out: nothing came for {seconds:g} s")
    return results[0]
