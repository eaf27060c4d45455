"""The folder of a run, which rank 0 writes for all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
import yaml
from torch import Tensor

import cpprune
from cpprune.config import RunConfig
from cpprune.distributed import process_group
from cpprune.distributed.collectives import broadcast_json, run_on_rank_0
from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.evaluation.operations import count_operations
from cpprune.models import artifact
from cpprune.models.fingerprint import fingerprint
from cpprune.pruning.plan import Plan, plan_bytes
from cpprune.runs import checkpoint, divergence
from cpprune.runs.contents import claim_run, clear_run, hold_run
from cpprune.runs.environment import environment
from cpprune.runs.identity import RunIdentity, check_same
from cpprune.runs.log import RunLog
from cpprune.runs.records import Origin, Record, RunResult, record_json
from shards.credentials import recorded
from shards.errors import UserError
from shards.files.atomic import replace_file, writing
from shards.files.documents import DocumentError, parse_json, typed


class RunFolder:
    """Writes and reads the files of a run.

    Every rank has to call every method. Rank 0 writes; where it cannot, all ranks raise UserError. As a
    context it keeps other processes from training in the folder, records in result.json that the run
    has diverged, and lets the tracker finish.

    Args:
        config: of the run.
        device: of this rank's tensors in collective calls.

    Raises:
        UserError: the folder holds something else than a run.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config = config
        self.path = Path(config.run)
        self.rank = process_group.rank()
        self.log = RunLog(self.path, self.rank)
        self.say = self.log.say
        self._device = device
        self._resources = ExitStack()
        self._on_rank_0(lambda: claim_run(self.path))

    def __enter__(self) -> RunFolder:
        with ExitStack() as resources:
            hold = hold_run(self.path)
            self._on_rank_0(lambda: resources.enter_context(hold))
            resources.enter_context(self.log)
            resources.enter_context(divergence.failure_written(self.path, self.rank))
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.__exit__(kind, error, trace)

    @property
    def ids_file(self) -> Path:
        """The file in which this rank records the clips of its batches."""
        return self.path / "ids" / f"rank-{self.rank}.jsonl"

    @property
    def compiled(self) -> Path:
        """The folder in which this rank keeps compiled code."""
        return self.path / "compiled" / f"rank-{self.rank}"

    def find_checkpoint(self, identity: RunIdentity) -> checkpoint.Saved | None:
        """Return the last whole checkpoint of the run, or None to begin; see `find_checkpoint`."""
        return find_checkpoint(self.path, self.config.resume, identity, self.say)

    def open(self, saved: checkpoint.Saved | None) -> None:
        """Begin the folder, or remove what was written after the checkpoint."""
        self._on_rank_0(lambda: self._open(saved))

    def _open(self, saved: checkpoint.Saved | None) -> None:
        write_start(self.path, self.config, fresh=saved is None)
        over = saved is not None and saved.progress.epoch >= self.config.train.epochs
        if not over or divergence.has_failed(self.path):
            (self.path / "result.json").unlink(missing_ok=True)
        if saved is not None:
            checkpoint.set_aside(self.path / "checkpoints", saved.path)
            self.log.truncate(saved.progress.metrics_bytes)
            truncate_ids(self.path, saved.progress.epoch, saved.progress.batch)
        self.log.track(self.config.track)

    def write_log(self, record: Record) -> None:
        """Append a record to metrics.jsonl."""
        self._on_rank_0(lambda: self.log.write(record))

    def write_plan(self, epoch: int, plan: Plan) -> None:
        """Write the plan by which the network was pruned at the beginning of an epoch."""
        path = self.path / "plans" / f"epoch-{epoch:04d}.json"
        self._on_rank_0(partial(replace_file, path, path.parent, plan_bytes(plan)))

    def write_model(self, name: str, model: artifact.Model, weights: dict[str, Tensor]) -> None:
        """Write a model folder: `model`, the best, or `model_last`."""
        write = partial(artifact.save, model, self.path / name, weights=weights, claimed=True)
        self._on_rank_0(write)

    def write_checkpoint(
        self,
        progress: checkpoint.Progress,
        identity: RunIdentity,
        tensors: checkpoint.Tensors,
        scaler: dict[str, object] | None,
    ) -> None:
        """Write a checkpoint and delete older ones; see `checkpoint.save`."""
        progress.metrics_bytes = self.log.size()
        folder, keep = self.path / "checkpoints", self.config.train.keep_checkpoints
        self._on_rank_0(lambda: checkpoint.save(folder, keep, progress, identity, tensors, scaler))

    def write_result(self) -> RunResult:
        """Write result.json from the best model; return what it holds, on every rank."""
        written: list[object] = []
        self._on_rank_0(lambda: written.append(asdict(write_result(self.path))))
        return typed(broadcast_json(written[:1], self._device)[0], RunResult)

    def _on_rank_0(self, do: Callable[[], object]) -> None:
        run_on_rank_0(do, self._device)


def provenance(
    config: RunConfig,
    identity: RunIdentity,
    progress: checkpoint.Progress,
    epoch: int,
    metrics: Mapping[str, object],
) -> dict[str, object]:
    """Return the origin and the validation metrics of a model, for model.json.

    Args:
        config: of the run.
        identity: see `cpprune.runs.identity`.
        progress: of the run.
        epoch: that the model is of.
        metrics: on the validation split.
    """
    pruning = {**asdict(config.prune), "original_widths": progress.original_widths}
    return {
        "provenance": {
            "cpprune": cpprune.__version__,
            "run": Path(config.run).name,
            "epoch": epoch,
            "seed": config.seed,
            "init": identity.init,
            "dataset": identity.dataset,
            "pruning": pruning if config.prune.prunes else None,
        },
        "metrics": {"val": metrics},
    }


def truncate_ids(folder: Path, epoch: int, batch: int) -> None:
    """Remove what was recorded of this global batch and later ones; see `data.record_ids`."""
    for path in (folder / "ids").glob("rank-*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = []
        for line in lines:
            try:
                place = parse_json(line, _Place)
            except DocumentError:
                continue  # a line that was not written whole
            if (place.epoch, place.batch) < (epoch, batch):
                kept.append(line)
        if kept != lines:
            replace_file(path, path.parent, b"".join(kept))


@dataclass(frozen=True)
class _Place:
    """The batch that a line of recorded ids belongs to."""

    epoch: int
    batch: int


def find_checkpoint(
    folder: Path, resume: str, identity: RunIdentity, say: Callable[[str], None]
) -> checkpoint.Saved | None:
    """Return the last whole checkpoint, or None to begin.

    Args:
        folder: of the run.
        resume: auto, must or never.
        identity: see `cpprune.runs.identity`.
        say: reports a checkpoint that is damaged and skipped, or of an older version.

    Raises:
        UserError: the folder holds a run with other settings or data, only damaged checkpoints, or
            none where one has to be.
    """
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    if resume == "never" or not found:
        if resume == "must":
            raise UserError(f"{folder}: has no checkpoint to resume; leave out --resume must")
        finished = (folder / "result.json").is_file() and not divergence.has_failed(folder)
        if resume != "never" and finished:
            raise UserError(
                f"{folder}: holds a finished run whose checkpoints are gone; choose another --run, or "
                "replace it with --resume never"
            )
        return None
    damage: list[str] = []
    for path in reversed(found):
        try:
            saved = checkpoint.read(path)
        except UserError as error:
            damage.append(str(error))
            continue
        for message in damage:
            say(f"{message}; going on from {path.name} instead")
        check_same(folder, saved.identity, saved.progress, identity, say)
        return saved
    raise UserError(
        f"{damage[0]}, and there is no whole checkpoint in {folder}: start again with --resume never"
    )


def write_start(folder: Path, config: RunConfig, fresh: bool) -> None:
    """Write config.yaml and environment.json; a fresh run first clears what an older one left."""
    with writing(folder, "--run"):
        claim_run(folder)
        if fresh:
            clear_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = json.dumps(asdict(environment()), indent=2) + "\n"
        replace_file(folder / "environment.json", folder, about.encode())
        if config.prune.prunes:
            (folder / "plans").mkdir(exist_ok=True)
        tree = config.to_dict()
        if config.init and Path(config.init).is_dir():  # a model carries its network and front end
            del tree["model"]
            tree["features"] = {"backend": config.features.backend}
        text = yaml.safe_dump(recorded(tree), sort_keys=False)
        replace_file(folder / "config.yaml", folder, text.encode())


def write_result(folder: Path) -> RunResult:
    """Write result.json from the run's best model, and return what it holds."""
    best = artifact.load(folder / "model")
    origin = typed(best.metadata, Origin)
    result = RunResult(
        run=str(folder),
        model=str(folder / "model"),
        parameters=count_parameters(best.network),
        macs=count_macs(best.network, best.input_shape),
        operations=count_operations(best.network, best.input_shape),
        epoch=origin.provenance.epoch,
        val=origin.metrics.val,
        fingerprint=fingerprint(best.network),
    )
    text = record_json(result, indent=2) + "\n"
    replace_file(folder / "result.json", folder, text.encode())
    return result
