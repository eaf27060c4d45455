"""Telling wandb or TensorBoard of a run, from a process of its own.

`cpprune.runs.trackers` follows what the run writes into its folder. So a tracker that fails, hangs or
loses its network neither stops nor slows the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shards import launcher
from shards.errors import InputError
from shards.files.documents import read_json

# kind → packages that it needs
PACKAGES: dict[str, tuple[str, ...]] = {
    "none": (),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "matplotlib"),
}

# How long a run waits for its tracker at its end.
SECONDS_AT_END = 30.0

# Of the run folder: how far its tracker has come, and what it printed.
STATE, LOG = "tracking.json", "tracking.log"

# What makes a process one of several. The tracker's is alone.
RANK_VARIABLES = (*launcher.PREFIXES, "ACCELERATE_")


def require(kind: str) -> None:
    """Raise InputError unless what a tracker needs is installed."""
    for package in PACKAGES[kind]:
        if find_spec(package) is None:
            raise InputError(
                f"track={kind} needs {package}: pip install 'cpprune[{kind}]', or leave it out"
            )


def read_state(folder: Path) -> dict[str, Any]:
    """Return how far the tracker of a run has come; empty where there was none.

    Returns:
        `kind`; `told`, the lines of metrics.jsonl that it knows; `id` of the run; `look`, what a person
        does to see it, and `rest`, to send what is not sent; `problem`, one line; `finished`, whether
        all is told.
    """
    try:
        return read_json(folder / STATE, dict[str, Any], nan=True)
    except InputError:
        return {}


class Tracking:
    """The tracker's process, as the run sees it.

    Args:
        folder: of the run.
        say: tells people, in one line, of what went wrong with it; called once at most.
        seconds: to wait for it at the end.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], seconds: float) -> None:
        self.folder, self.say, self.seconds = folder, say, seconds
        self.warned = False
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(RANK_VARIABLES)
        }
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with (folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cpprune.runs.trackers", str(folder), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the run
            )

    def look(self) -> None:
        """Say so, if something went wrong with the tracker; takes no time."""
        status = self.process.poll()
        state = read_state(self.folder)
        problem = state.get("problem") if state.get("pid") == self.process.pid else None
        if status and not problem:
            problem = f"it ended with exit status {status}; see {self.folder / LOG}"
        if problem:
            self._warn(problem)

    def close(self, ok: bool) -> None:
        """Let the tracker tell what is left, for `seconds` at most.

        Args:
            ok: whether the run ended as it should.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"ok\n" if ok else b"failed\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already; `look` says so
        try:
            self.process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            rest = read_state(self.folder).get("rest", "begin the same command again")
            self._warn(
                f"it was not done {self.seconds:.0f} s after the end of the run (for the rest: {rest})"
            )
        self.look()

    def _warn(self, problem: str) -> None:
        if not self.warned:
            self.warned = True
            self.say(f"tracking: {problem}; the run does not depend on it")
