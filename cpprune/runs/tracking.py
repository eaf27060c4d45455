"""Experiment tracking with wandb or TensorBoard, from a process of its own.

The process, `cpprune.runs.trackers`, follows what the run writes into its folder. So a tracker that
fails, hangs or loses its network neither stops nor slows the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from shards import launcher
from shards.errors import UserError
from shards.files.atomic import replace_file
from shards.files.documents import read_json, to_json

# kind → packages that it needs
PACKAGES: dict[str, tuple[str, ...]] = {
    "none": (),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "matplotlib"),
}

# How long a run waits for its tracker at its end.
SECONDS_AT_END = 30.0

# Files of the run folder: the tracker's state, and what its process prints.
STATE, LOG = "tracking.json", "tracking.log"

# Variables that make a process one of several, which the tracker's process is not.
RANK_VARIABLES = (*launcher.PREFIXES, "ACCELERATE_")


def require(kind: str) -> None:
    """Raise UserError unless the packages of a tracker are installed."""
    for package in PACKAGES[kind]:
        if find_spec(package) is None:
            raise UserError(
                f"track={kind} needs {package}: pip install 'cpprune[{kind}]', or leave it out"
            )


@dataclass
class TrackingState:
    """How far the tracker of a run has come: tracking.json.

    Attributes:
        kind: wandb or tensorboard; empty if the run has no tracker.
        told: number of lines of metrics.jsonl that were logged.
        id: id of the run at the tracker.
        look: URL or command that shows the run.
        rest: command that sends what has not been sent.
        problem: what went wrong, in one line; None if nothing did.
        finished: whether all of the run was logged.
        pid: the tracker's process.
    """

    kind: str = ""
    told: int = 0
    id: str | None = None
    look: str | None = None
    rest: str = "begin the same command again"
    problem: str | None = None
    finished: bool = False
    pid: int | None = None


def read_state(folder: Path) -> TrackingState:
    """Return the state of a run's tracker; an empty one if the run has none."""
    try:
        return read_json(folder / STATE, TrackingState, nan=True)
    except UserError:
        return TrackingState()


def write_state(folder: Path, state: TrackingState) -> None:
    """Replace the state of a run's tracker."""
    replace_file(folder / STATE, folder, (to_json(asdict(state)) + "\n").encode())


class Tracking:
    """The tracker's process, seen from the run.

    Args:
        folder: folder of the run.
        warn: is given one line about what went wrong with the tracker; called once at most.
        seconds: how long to wait for the tracker at the end of the run.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], seconds: float) -> None:
        self.folder, self.warn, self.seconds = folder, warn, seconds
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
                start_new_session=True,  # Ctrl-C is meant for the run
            )

    def check(self) -> None:
        """Warn if something went wrong with the tracker; does not wait."""
        status = self.process.poll()
        state = read_state(self.folder)
        problem = state.problem if state.pid == self.process.pid else None
        if status and not problem:
            problem = f"it ended with exit status {status}; see {self.folder / LOG}"
        if problem:
            self._warn(problem)

    def close(self, ok: bool) -> None:
        """Let the tracker log and send what is left, for `seconds` at most.

        Args:
            ok: whether the run ended as it should.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(b"ok\n" if ok else b"failed\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; `check` says so
        try:
            self.process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self._warn(
                f"it was not done {self.seconds:.0f} s after the end of the run (for the rest: "
                f"{read_state(self.folder).rest})"
            )
        self.check()

    def _warn(self, problem: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn(f"tracking: {problem}; the run does not depend on it")
