"""The agent: runs trials one after another, each in a process of its own, until none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from cpprune.sweeps.command import command_words
from cpprune.sweeps.study import Claim, SharedStudy
from cpprune.sweeps.trial import TrialResult, best_epoch, last_error, read_epochs, read_result
from shards.errors import UserError

POLL_SECONDS = 0.2
MAX_FAILURES = 3  # in a row


class Signals:
    """Context manager that counts SIGINT and SIGTERM, and restores their handlers on exit."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0
        self._restore = ExitStack()

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._restore.callback(signal.signal, number, signal.signal(number, self._take))
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


class Agent:
    """Runs trials of a sweep.

    Args:
        study: of the sweep.
        settings: arguments that are added to the command of every trial.
        limit: number of trials in all, over all processes.
        message: prints a message.
    """

    def __init__(
        self,
        study: SharedStudy,
        settings: Sequence[str],
        limit: int,
        message: Callable[[str], None],
    ) -> None:
        self.study, self.settings, self.limit = study, tuple(settings), limit
        self.message = message
        self.signals = Signals()
        self.failures = 0

    def work(self) -> str:
        """Run trials until none can be claimed.

        Returns:
            What stopped it before that; empty if nothing did.

        Raises:
            UserError: three trials in a row failed.
        """
        with self.signals:
            while not self.signals.count:
                claim = self.study.claim(self.limit)
                if claim is None:
                    return ""
                with claim.lock:
                    why = self._trial(claim)
                if why:
                    return why
        return signal.Signals(self.signals.first).name

    def _trial(self, claim: Claim) -> str:
        """Run a trial to its end; return why the sweep stops with it, if it does."""
        study, run = self.study, self.study.path(claim.number)
        shown = "  ".join(f"{name}={value}" for name, value in claim.arguments.items())
        self.message(f"{run.name}: {'resumes' if claim.resumed else 'begins'}: {shown}")
        begin = claim.log.seek(0, os.SEEK_END)
        with claim.log:
            process = self._start(claim)
        ended_early = self._watch(process, claim)
        while study.is_alive(claim.number):  # processes may outlive their launcher
            time.sleep(POLL_SECONDS)
        (run / "STOP").unlink(missing_ok=True)
        result, best = read_result(run), best_epoch(read_epochs(run))
        value = best.metric(study.sweep.metric) if best else None
        if ended_early:
            self.message(f"{run.name}: ended early, after epoch {study.reported(claim)}")
        elif process.returncode == 0 and result and value is not None:
            study.done(claim, value)
            self.message(f"{run.name}: {study.sweep.metric} {value:.6g}")
        elif self.signals.count:
            return signal.Signals(self.signals.first).name
        elif process.returncode == 0 and result is None and (run / "checkpoints").is_dir():
            return f"{run.name}, which was stopped"
        else:
            return self._failed(claim, self._reason(claim, process.returncode, result, begin))
        self.failures = 0
        return ""

    def _reason(self, claim: Claim, status: int, result: TrialResult | None, begin: int) -> str:
        run, metric = self.study.path(claim.number), self.study.sweep.metric
        if status:
            return last_error(self.study.log_path(claim.number), begin, status)
        if result is None:
            return f"there is no result.json in {run}: the command must train in the folder --run"
        return f"{metric} is not finite"

    def _failed(self, claim: Claim, error: str) -> str:
        self.study.failed(claim, error)
        self.message(f"trial-{claim.number:04d}: failed: {error}")
        self.failures += 1
        if self.failures == MAX_FAILURES:
            raise UserError(
                f"{self.study.folder}: {MAX_FAILURES} trials in a row failed, the last with: {error}; "
                "fix it, then repeat the command with --retry"
            )
        return ""

    def _start(self, claim: Claim) -> subprocess.Popen[bytes]:
        sweep = self.study.sweep
        words = command_words(sweep.command, sweep.program, claim.arguments)
        # Trials are not tracked unless the settings say so.
        words += ["--track=none", *self.settings, f"--run={self.study.path(claim.number)}"]
        # Programs installed beside this Python, such as accelerate, come first.
        folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        environment = {**os.environ, "PATH": os.pathsep.join(folders)}
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=claim.log,
                stderr=claim.log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process only, which asks the trial to stop
            )
        except OSError as error:
            raise UserError(f"command: {words[0]} cannot be started ({error.strerror})") from None

    def _watch(self, process: subprocess.Popen[bytes], claim: Claim) -> bool:
        """Wait for a trial, stopping it if need be; return whether it ended early."""
        run = self.study.path(claim.number)
        early, seen, killed = False, self.study.reported(claim), False
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if self.signals.count > 1 and not killed:
                os.killpg(process.pid, signal.SIGTERM)
                killed = True
            if self.signals.count or early:
                # Repeatedly: a run that is only now starting removes an earlier STOP.
                run.mkdir(exist_ok=True)
                (run / "STOP").touch()
            elif self.study.sweep.early is not None:
                for record in read_epochs(run)[seen:]:
                    seen += 1
                    value = record.metric(self.study.sweep.metric)
                    if value is None:  # not finite: no ground for a decision
                        continue
                    early = self.study.report(claim, seen, value)
                    if early:
                        break
        return early
