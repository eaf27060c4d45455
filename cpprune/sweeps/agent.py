"""The process that runs trials one after another, each as a process of its own, until none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from cpprune.sweeps.board import Board, Claim
from cpprune.sweeps.command import command_words
from cpprune.sweeps.outcome import kept_epoch, last_error, read_epochs, read_result
from shards.errors import InputError

POLL_SECONDS = 0.2
MOST_FAILURES = 3


class Signals:
    """Counts SIGINT and SIGTERM as long as it is entered, and then gives them back."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


class Agent:
    """Runs trials of a sweep.

    Args:
        board: of the sweep.
        settings: words that are added to the command of every trial.
        limit: how many trials there may be in all, over all processes.
    """

    def __init__(self, board: Board, settings: Sequence[str], limit: int) -> None:
        self.board, self.settings, self.limit = board, tuple(settings), limit
        self.signals = Signals()
        self.failures = 0

    def work(self) -> str:
        """Run trials until there is none to take.

        Returns:
            Why it ended before that; empty if it did not.

        Raises:
            InputError: three trials in a row failed.
        """
        with self.signals:
            while not self.signals.count:
                claim = self.board.claim(self.limit)
                if claim is None:
                    return ""
                with claim.lock:
                    why = self._trial(claim)
                if why:
                    return why
        return signal.Signals(self.signals.first).name

    def _trial(self, claim: Claim) -> str:
        """Run a trial to its end; return why the sweep ends with it, if it does."""
        board, run = self.board, self.board.path(claim.number)
        shown = "  ".join(f"{name}={value}" for name, value in claim.arguments.items())
        say(f"{run.name}: {'goes on' if claim.resumed else 'begins'}: {shown}")
        begin = claim.log.seek(0, os.SEEK_END)
        with claim.log:
            process = self._start(claim)
        ended_early = self._watch(process, claim)
        while board.is_alive(claim.number):  # processes may outlive their launcher
            time.sleep(POLL_SECONDS)
        (run / "STOP").unlink(missing_ok=True)
        result, kept = read_result(run), kept_epoch(read_epochs(run))
        metric = board.sweep.metric
        if ended_early:
            say(f"{run.name}: ended early, after epoch {board.reported(claim)}")
        elif process.returncode == 0 and result and kept and kept.get(metric) is not None:
            board.done(claim, kept[metric])
            say(f"{run.name}: {metric} {kept[metric]:.6g}")
        elif self.signals.count:
            return signal.Signals(self.signals.first).name
        elif process.returncode == 0 and result is None and (run / "checkpoints").is_dir():
            return f"{run.name}, which was stopped"
        else:
            return self._failed(claim, self._reason(claim, process.returncode, result, begin))
        self.failures = 0
        return ""

    def _reason(
        self, claim: Claim, status: int, result: Mapping[str, Any] | None, begin: int
    ) -> str:
        run, metric = self.board.path(claim.number), self.board.sweep.metric
        if status:
            return last_error(self.board.log_path(claim.number), begin, status)
        if result is None:
            return f"there is no result.json in {run}: the command has to train in --run"
        return f"{metric} is not finite"

    def _failed(self, claim: Claim, error: str) -> str:
        self.board.failed(claim, error)
        say(f"trial-{claim.number:04d}: failed: {error}")
        self.failures += 1
        if self.failures == MOST_FAILURES:
            raise InputError(
                f"{self.board.folder}: {MOST_FAILURES} trials in a row failed, the last with: {error}; "
                "mend it, then give the same command with --retry"
            )
        return ""

    def _start(self, claim: Claim) -> subprocess.Popen[bytes]:
        sweep = self.board.sweep
        words = command_words(sweep.command, sweep.program, claim.arguments)
        # Nobody but this process has to be told, unless the settings say so.
        words += ["--track=none", *self.settings, f"--run={self.board.path(claim.number)}"]
        # What is installed beside this Python, such as accelerate, is found first.
        folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        environment = {**os.environ, "PATH": os.pathsep.join(folders)}
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=claim.log,
                stderr=claim.log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then asks it to stop
            )
        except OSError as error:
            raise InputError(f"command: {words[0]} cannot be started ({error.strerror})") from None

    def _watch(self, process: subprocess.Popen[bytes], claim: Claim) -> bool:
        """Wait for a trial, and ask it to stop if need be; return whether it ended early."""
        run = self.board.path(claim.number)
        early, seen, killed = False, self.board.reported(claim), False
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if self.signals.count > 1 and not killed:
                os.killpg(process.pid, signal.SIGTERM)
                killed = True
            if self.signals.count or early:
                # Again and again: a run that starts only now takes an earlier STOP away.
                run.mkdir(exist_ok=True)
                (run / "STOP").touch()
            elif self.board.sweep.early is not None:
                for record in read_epochs(run)[seen:]:
                    seen += 1
                    value = record.get(self.board.sweep.metric)
                    if value is None:  # not finite: says nothing of the epochs to come
                        continue
                    early = self.board.report(claim, seen, value)
                    if early:
                        break
        return early


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
