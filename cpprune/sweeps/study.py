"""The folder that the processes of a sweep share: an Optuna study and the run of each trial.

    DIR/sweep.json      definition of the sweep
    DIR/journal.log     Optuna's journal: sampled parameters, metrics and state of every trial
    DIR/trial-0007/     run folder of a trial
    DIR/trial-0007.log  output of its processes
    DIR/locks/          empty files that are locked

A process claims a trial by locking two files: its lock, and its log, whose lock the trial's own
processes inherit. The operating system releases a lock when the last process that holds it ends, so a
trial is never run twice at a time, and can be claimed again when all its processes were killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cpprune.deps.optuna import live_trial
from cpprune.sweeps.definition import EarlyTermination, Sweep, grid_cell
from shards.credentials import recorded
from shards.errors import UserError, one_line
from shards.files.atomic import drop_partial_line, replace_file
from shards.files.documents import DocumentError, json_lines, read_bytes, read_json
from shards.files.locks import FileLock, is_locked, open_locked
from shards.files.ownership import Kind, claim, read_mark

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import Trial

# `sweep.json` is written first, then the journal; nothing is sampled before that.
SWEEP = Kind(
    name="a sweep",
    parts=("sweep.json", "journal.log", "results.csv", "sweep.png", "locks/"),
    made=lambda folder: (
        {"method", "metric", "goal", "parameters", "program", "command", "settings"}
        <= read_mark(folder / "sweep.json").keys()
    ),
    early=frozenset({"locks"}),
)

MAX_JOURNAL_BYTES = 1 << 28
ERROR = "error"  # user attribute of a failed trial: its last error line


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs.

    Attributes:
        number: of the trial, from 0.
        arguments: name → value of its command, nested as in the file.
        trial: Optuna's trial.
        lock: open and locked for as long as this process owns the trial.
        log: open and locked; its processes write to it.
        resumed: whether it has begun before.
    """

    number: int
    arguments: dict[str, object]
    trial: Trial
    lock: BinaryIO
    log: BinaryIO
    resumed: bool


@dataclass(frozen=True)
class TrialStatus:
    """The state of a trial.

    Attributes:
        number: of the trial, from 0.
        state: `done`, `ended early`, `failed`, `running` or `stopped`.
        values: dotted name of a parameter → its value.
        error: why it failed, or None.
    """

    number: int
    state: str
    values: dict[str, object]
    error: str | None


class SharedStudy:
    """An Optuna study in a folder, worked on by any number of processes.

    Args:
        folder: of the sweep; created unless it exists.
        sweep: its definition.
        settings: arguments that are added to the command of every trial.

    Raises:
        UserError: the folder holds another sweep or cannot be written, or Optuna is not installed.
    """

    def __init__(self, folder: Path, sweep: Sweep, settings: tuple[str, ...]) -> None:
        if find_spec("optuna") is None:
            raise UserError("cpprune sweep needs Optuna: pip install 'cpprune[sweep]'")
        self.folder, self.sweep = folder, sweep
        self.varied = [p.name for p in sweep.parameters if p.distribution != "constant"]
        claim(folder, SWEEP, "--out")
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / "locks/journal")
        self.journal = folder / "journal.log"
        with self.transaction():
            self._check_same(settings)
            self.study = self._study()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Lock the journal: no other process reads or writes it meanwhile."""
        with self.lock:
            drop_partial_line(self.journal)
            yield

    def _check_same(self, settings: tuple[str, ...]) -> None:
        known = asdict(self.sweep)
        known.pop("run_cap")  # may be raised later
        mine = json.loads(json.dumps(recorded({**known, "settings": settings})))
        path = self.folder / "sweep.json"
        if not path.is_file():
            replace_file(path, self.folder, json.dumps(mine, indent=2).encode())
            return
        theirs = read_json(path, dict[str, object], remedy="choose another --out")
        for key, value in mine.items():
            if key in theirs and recorded(theirs[key]) != value:  # older versions had fewer keys
                raise UserError(
                    f"{self.folder}: holds another sweep ({key} differs); choose another --out, or "
                    "repeat the same file and settings to resume"
                )

    def _study(self) -> Study:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._replayed():
            if os.path.lexists(self.journal):
                for line in json_lines(
                    read_bytes(self.journal, MAX_JOURNAL_BYTES), dict[str, object]
                ):
                    if isinstance(line, DocumentError):
                        raise line
            return optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self.journal), lock_obj=self.lock)),
                study_name="sweep",
                direction=self.sweep.goal,
                pruner=_pruner(self.sweep.early),
                load_if_exists=True,
            )

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        """Turn errors of replaying the journal, which Optuna does not check, into an UserError."""
        try:
            yield
        except (UserError, OSError):
            raise
        except Exception as error:
            raise UserError(
                f"{self.journal}: is damaged ({one_line(error)}); choose another --out, or remove the "
                "folder to start the sweep again"
            ) from None

    def path(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / f"trial-{number:04d}"

    def lock_path(self, number: int) -> Path:
        """Return the lock of a trial."""
        return self.folder / f"locks/trial-{number:04d}"

    def log_path(self, number: int) -> Path:
        """Return the log of a trial."""
        return self.folder / f"trial-{number:04d}.log"

    def claim(self, limit: int) -> Claim | None:
        """Claim a trial: an unfinished one that no process runs, else a new one; None if there is none.

        Args:
            limit: number of trials in all.
        """
        from optuna.trial import TrialState

        with self.transaction(), self._replayed():
            trials = self.study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state != TrialState.RUNNING or frozen.user_attrs.get(ERROR):
                    continue
                files = self._hold(frozen.number)
                if files is not None:
                    self.study.sampler = self._sampler(frozen.number)
                    return self._claim(live_trial(self.study, frozen), files, resumed=True)
            # A trial that was enqueued by a process that was then killed comes first.
            queued = [t.number for t in trials if t.state == TrialState.WAITING]
            number = queued[0] if queued else len(trials)
            if number >= limit:
                return None
            if self.sweep.method == "grid" and not queued:
                self.study.enqueue_trial(grid_cell(self.sweep, number))
            self.study.sampler = self._sampler(number)
            trial = self.study.ask()
            files = self._hold(trial.number)
            assert files is not None
            return self._claim(trial, files, resumed=False)

    def _claim(self, trial: Trial, files: tuple[BinaryIO, BinaryIO], resumed: bool) -> Claim:
        return Claim(trial.number, self._arguments(trial), trial, *files, resumed)

    def _hold(self, number: int) -> tuple[BinaryIO, BinaryIO] | None:
        """Return lock and log of a trial, both locked; None if another process runs it."""
        lock = open_locked(self.lock_path(number))
        if lock is None:
            return None
        log = open_locked(self.log_path(number))
        if log is None:
            lock.close()
            return None
        return lock, log

    def is_running(self, number: int) -> bool:
        """Return whether a process has claimed a trial or still runs it."""
        return is_locked(self.lock_path(number)) or self.is_alive(number)

    def is_alive(self, number: int) -> bool:
        """Return whether a process of the trial itself is alive."""
        return is_locked(self.log_path(number))

    def _arguments(self, trial: Trial) -> dict[str, object]:
        arguments: dict[str, object] = {}
        for parameter in self.sweep.parameters:
            inner = arguments
            for key in parameter.path[:-1]:
                below = inner.setdefault(key, {})
                assert isinstance(below, dict)
                inner = below
            inner[parameter.path[-1]] = parameter.suggest(trial)
        return arguments

    def _sampler(self, number: int) -> BaseSampler:
        """Return the sampler of a trial, seeded with its number."""
        from optuna.samplers import RandomSampler, TPESampler

        kind = TPESampler if self.sweep.method == "bayes" else RandomSampler
        return kind(seed=number)

    def report(self, claim: Claim, epoch: int, value: float) -> bool:
        """Record the metric of an epoch; return whether the trial ends early, and record that too."""
        from optuna.trial import TrialState

        with self.transaction():
            claim.trial.report(value, epoch)
            if not claim.trial.should_prune():
                return False
            self.study.tell(claim.trial, state=TrialState.PRUNED)
            return True

    def reported(self, claim: Claim) -> int:
        """Return the last epoch that was recorded of a trial; 0 for a new one."""
        with self.transaction():
            trial = self.study.get_trials(deepcopy=False)[claim.number]
        return int(trial.last_step or 0)

    def done(self, claim: Claim, value: float) -> None:
        """Record the final metric of a trial."""
        with self.transaction():
            self.study.tell(claim.trial, value)

    def failed(self, claim: Claim, error: str) -> None:
        """Record why a trial failed. To Optuna it is still running, so that it can be retried."""
        with self.transaction():
            claim.trial.set_user_attr(ERROR, error)

    def retry(self) -> None:
        """Let all failed trials be claimed again."""
        with self.transaction():
            for frozen in self.study.get_trials(deepcopy=False):
                if frozen.user_attrs.get(ERROR):
                    live_trial(self.study, frozen).set_user_attr(ERROR, None)

    def status(self) -> list[TrialStatus]:
        """Return the state of every trial whose parameters are all sampled."""
        from optuna.trial import TrialState

        ended = {TrialState.COMPLETE: "done", TrialState.PRUNED: "ended early"}
        rows = []
        with self.transaction(), self._replayed():
            for frozen in self.study.get_trials(deepcopy=False):
                if frozen.params.keys() != set(self.varied):
                    continue  # its process was killed before it sampled all
                error = frozen.user_attrs.get(ERROR)
                if frozen.state in ended:
                    state = ended[frozen.state]
                elif error:
                    state = "failed"
                else:
                    state = "running" if self.is_running(frozen.number) else "stopped"
                values = {p.name: p.suggest(frozen) for p in self.sweep.parameters}
                rows.append(TrialStatus(frozen.number, state, values, error))
        return rows


def _pruner(early: EarlyTermination | None) -> BasePruner:
    from optuna.pruners import NopPruner, SuccessiveHalvingPruner

    if early is None:
        return NopPruner()
    # What wandb calls hyperband is a single bracket: Optuna's successive halving.
    return SuccessiveHalvingPruner(min_resource=early.first, reduction_factor=early.eta)
