"""The training loop. Pruning is an event of it; without a schedule it is plain training."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

import shards
from cpprune.config import RunConfig
from cpprune.data.loader import TrainingBatches
from cpprune.distributed import collectives, process_group
from cpprune.distributed.preemption import Stopping
from cpprune.distributed.watchdog import Watchdog
from cpprune.evaluation import metrics
from cpprune.evaluation.complexity import count_parameters
from cpprune.evaluation.predict import predict_split
from cpprune.models import artifact
from cpprune.models.finite import not_finite
from cpprune.models.resize import fit, layer_widths
from cpprune.pruning.calibration import measure_saliency
from cpprune.pruning.plan import make_plan, plan_bytes, read_plan
from cpprune.pruning.regularizers import Penalty
from cpprune.pruning.schedule import events, lr_span, plan_arguments
from cpprune.runs import checkpoint, divergence, tracking
from cpprune.runs.checkpoint import Progress
from cpprune.runs.divergence import REMEDY, DivergenceError, failure_written
from cpprune.runs.folder import claim_run, hold_run
from cpprune.runs.identity import identity
from cpprune.runs.progress import closing_lines, epoch_line, epoch_text, opening_text, resumed_text
from cpprune.runs.run import (
    Journal,
    cut_back_ids,
    find_checkpoint,
    peak_memory_bytes,
    provenance,
    write_result,
    write_start,
)
from cpprune.training.create_model import start_model
from cpprune.training.optim import lr_factor
from cpprune.training.skipped import SkippedSteps
from cpprune.training.step import Stepper
from shards.errors import InputError
from shards.files.atomic import replace_file


def train(config: RunConfig, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Train as the configuration says, or go on where the run folder ends.

    Args:
        config: the whole tree.
        given: keys set by hand, which must not contradict the model of `config.init`.

    Returns:
        What `result.json` holds: the best validation figures, parameters and macs, and the folders. Of
        a run that was asked to stop: `run`, `stopped` (why), `epoch` and `batch` that come next.

    Raises:
        InputError: something in the configuration, the data or the run folder has to be mended.
        DivergenceError: the run has failed, as result.json then says too.
    """
    with process_group.joined(config.train.precision, config.train.clip_norm) as accelerator:
        trainer = Trainer(config, given, accelerator)
        with (
            ExitStack() as held,
            trainer.stopping,
            trainer.watchdog,
            trainer.journal,
            closing(trainer.stepper),
            failure_written(trainer.folder, trainer.rank),
        ):
            # Before any rank looks for a checkpoint there.
            hold = hold_run(trainer.folder)
            collectives.on_rank_0(lambda: held.enter_context(hold), trainer.device)
            trainer.begin()
            for epoch in range(trainer.progress.epoch, config.train.epochs):
                trainer.prune_if_due(epoch)
                why = trainer.train_epoch(epoch)
                if not why:
                    trainer.validate(epoch)
                trainer.save()
                why = why or trainer.stopping.asked(0)
                if why and trainer.progress.epoch < config.train.epochs:
                    return trainer.stopped(why)
            return trainer.result()


class Trainer:
    """The state of a training run.

    Attributes:
        model: front end and network, unwrapped.
        progress: how far the run has come; with it, and the tensors, a run goes on.
    """

    def __init__(self, config: RunConfig, given: frozenset[str], accelerator: Any) -> None:
        tracking.require(config.track)
        self.config = config
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank, self.world = process_group.rank(), process_group.world_size()
        self.folder = Path(config.run)
        collectives.on_rank_0(lambda: claim_run(self.folder), self.device)
        self.dataset = shards.open_dataset(
            config.data.path, config.data.cache, config.data.cache_bytes
        )
        self.val = self.dataset.split("val")
        self.model = start_model(config, self.dataset, given)
        self.identity = identity(config, self.dataset, self.model)
        if config.train.batch_size < self.world:
            raise InputError(
                f"train.batch_size={config.train.batch_size}: must be at least the number of "
                f"processes, {self.world}"
            )
        ids_file = self.folder / "ids" / f"rank-{self.rank}.jsonl"
        self.batches = TrainingBatches(
            self.dataset,
            config.data,
            config.train.batch_size,
            config.seed,
            rank=self.rank,
            world=self.world,
            device=self.device,
            ids_file=ids_file if config.data.record_ids else None,
            alive=lambda: self.watchdog.progress(self.progress.step),
        )
        self.stepper = Stepper(config, self.model, self.dataset.labels, accelerator)
        widths = layer_widths(self.model.network)
        self.progress = Progress(widths=widths, original_widths=widths)
        self.events = events(config.prune)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.train_loss = self.speed = self.lr = self.accuracy = math.nan
        self.started = time.monotonic()
        self.journal = Journal(self.folder, self.rank)
        self.stopping = Stopping(self.folder, config.train.time_limit_minutes, self.device)
        self.watchdog = Watchdog(0.9 * process_group.timeout_seconds())
        self.skipped = SkippedSteps(
            self.dataset, self.journal, config.train.max_skipped, self.device
        )

    def prune_if_due(self, epoch: int) -> None:
        """Cut the network if the schedule has an event at the start of this epoch."""
        progress, prune = self.progress, self.config.prune
        if progress.batch or progress.events_done >= len(self.events):
            return
        event = self.events[progress.events_done]
        if event.epoch != epoch:
            return
        network, input_shape = self.model.network, self.model.input_shape
        before = count_parameters(network)
        train = self.dataset.split("train")
        saliency = measure_saliency(prune, self.model, train, self.config.seed, self.device)
        cut = self.stepper.cut(
            lambda: (
                read_plan(Path(prune.plan), network, input_shape)
                if prune.plan
                else make_plan(
                    network,
                    input_shape,
                    original_widths=progress.original_widths,
                    **plan_arguments(prune, event, self.config.seed),
                    saliency=saliency,
                )
            ),
            prune.carry_state,
        )
        progress.events_done += 1
        progress.widths = layer_widths(network)
        progress.best, progress.best_step = None, -1  # only models of the final size count
        self.stepper.penalty = self.penalty()
        after = count_parameters(network)
        record = {
            "event": "prune",
            "epoch": epoch,
            "step": progress.step,
            "criterion": prune.criterion,
            "part": event.part,
            "parameters_before": before,
            "parameters": after,
            "widths": progress.widths,
            "fingerprint": cut.fingerprint,
        }
        collectives.on_rank_0(lambda: self.journal.log(record), self.device)
        path = self.folder / "plans" / f"epoch-{epoch:04d}.json"
        write = partial(replace_file, path, path.parent, plan_bytes(cut.plan))
        collectives.on_rank_0(write, self.device)
        self.journal.say(
            f"pruned at epoch {epoch + 1} ({progress.events_done} of {len(self.events)}, "
            f"{prune.criterion}): {before:,} → {after:,} parameters, equal on {self.world} "
            "process(es)"
        )

    def penalty(self) -> Penalty | None:
        """Return what the loss has beside the cross-entropy until the last cut."""
        prune = self.config.prune
        if prune.sparsity == "none" or self.progress.events_done == len(self.events):
            return None
        network, shape = self.model.network, self.model.input_shape
        kind, strength = prune.sparsity, prune.sparsity_strength
        return Penalty(network, shape, kind, strength, until=self.events[-1].epoch)

    def train_epoch(self, epoch: int) -> str:
        """Train on what is left of this epoch's global batches.

        Returns:
            Why the run has to stop in the middle of the epoch; empty when the epoch is over.
        """
        config, progress = self.config, self.progress
        first, end = lr_span(config.prune, epoch, config.train.epochs)
        factor = lr_factor(config.optim, epoch - first, end - first, progress.val_losses[first:])
        self.lr = config.optim.lr * factor
        self.stepper.set_lr(self.lr)
        self.model.network.train()
        begin, seen_before = time.monotonic(), progress.clips_seen
        shown, clips = f"{epoch + 1}/{config.train.epochs}", self.batches.clips
        line = epoch_line(
            shown, len(self.batches), clips, seen_before, self.accuracy, self.loss_sum
        )
        with line if self.rank == 0 else nullcontext(lambda batch: None) as advance:
            for batch in self.batches.epoch(epoch, progress.batch):
                stepped = self.stepper.step(epoch, batch, progress.step)
                self.loss_sum += stepped.loss_sum
                self.skipped.add(batch, stepped.skipped)
                progress.batch = batch.number + 1
                progress.step += 1
                progress.clips_seen += len(batch.ids)
                advance(batch)
                self.watchdog.progress(progress.step)
                if progress.batch == len(self.batches):
                    continue  # what comes now is validation
                every = config.train.checkpoint_steps
                if every and progress.step % every == 0:
                    self.save()
                if why := self.stopping.asked(progress.step):
                    return why
                self.skipped.settle(progress, now=False)
        self.skipped.settle(progress)
        if progress.clips_seen <= 0:
            raise DivergenceError(
                f"{self.folder}: the training loss is not finite in all of epoch {epoch + 1}; {REMEDY}"
            )
        self.train_loss = math.fsum(self.loss_sums()) / progress.clips_seen
        self.speed = (progress.clips_seen - seen_before) / max(time.monotonic() - begin, 1e-9)
        self.loss_sum.zero_()
        self.share_buffers()
        progress.epoch, progress.batch, progress.clips_seen = epoch + 1, 0, 0
        return ""

    def validate(self, epoch: int) -> None:
        """Evaluate on the validation split; write the last finite model, and the best if it is that."""
        progress, config = self.progress, self.config
        model, fetch = (self.stepper.evaluated, self.model.features), self.batches.validation()
        with self.accelerator.autocast():
            logits = predict_split(*model, self.val, self.device, fetch)
        log_prob, labels = metrics.log_softmax(logits), self.val.labels
        figures = metrics.summary(log_prob, labels)
        progress.val_losses.append(figures["log_loss"])
        value, monitor = figures[config.train.monitor], config.train.monitor
        self.accuracy = math.nan if value is None else figures["macro_accuracy"]
        wrong = not_finite(self.stepper.evaluated)
        final_size = progress.events_done == len(self.events)
        best = final_size and not wrong and divergence.is_better(value, progress.best, monitor)
        if best:
            progress.best, progress.best_step = value, progress.step
        record = {
            "epoch": epoch,
            "step": progress.step,
            "lr": self.lr,
            "train_loss": self.train_loss,
            **{f"val_{name}": figure for name, figure in figures.items()},
            "best": best,
            "parameters": count_parameters(self.model.network),
            "clips_per_second": self.speed,
            "memory_bytes": peak_memory_bytes(self.device),
            "seconds": self.seconds(),
            **divergence.why_not_finite(wrong, figures, self.train_loss),
        }
        if best:
            record["val_confusion"] = metrics.confusion_matrix(log_prob, labels).tolist()
        collectives.on_rank_0(lambda: self.journal.log(record), self.device)
        self.model.metadata = provenance(config, self.identity, progress, epoch, figures)
        weights = self.stepper.evaluated.state_dict()
        finite = value is not None and not wrong
        for name in ["model_last", "model"] if best else ["model_last"] * finite:
            folder = self.folder / name
            write = partial(artifact.save, self.model, folder, weights=weights, claimed=True)
            collectives.on_rank_0(write, self.device)
        self.watchdog.progress(progress.step)
        self.journal.say(epoch_text(record, config.train.epochs))

    def begin(self) -> None:
        """Go on from the run folder's last checkpoint, if there is one; else begin the folder."""
        found = find_checkpoint(self.folder, self.config.resume, self.identity, self.journal.say)
        self.accelerator.wait_for_everyone()
        collectives.on_rank_0(lambda: self.open_folder(found), self.device)
        network = self.model.network
        if found is None:
            self.stepper.wrap({})
            self.stepper.penalty = self.penalty()
            text = opening_text(self.config, self.model, self.batches.clips, len(self.batches))
            self.journal.say(f"{text}, {self.world} process(es) on {self.device.type}")
            return
        tensors = found.tensors
        self.progress = progress = found.progress
        self.started -= progress.seconds
        fit(network, tensors.network)
        network.load_state_dict(tensors.network)
        self.stepper.wrap(tensors.optimizer)
        self.stepper.penalty = self.penalty()
        if self.stepper.average is not None:
            self.stepper.average.network.load_state_dict(tensors.average)
        if found.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(found.scaler)
        sums = progress.loss_sums
        if len(sums) == self.world:
            self.loss_sum.fill_(sums[self.rank])
        elif self.rank == 0:  # another number of processes goes on
            self.loss_sum.fill_(sum(sums))
        self.journal.say(resumed_text(self.folder, found, self.config.train.epochs))

    def open_folder(self, found: checkpoint.Saved | None) -> None:
        """Begin the run's folder, or take back what it tells of work that is not in the checkpoint."""
        write_start(self.folder, self.config, fresh=found is None)
        self.stopping.forget_file()
        divergence.forget_failure(self.folder)
        if found is not None:
            checkpoint.set_aside(self.folder / "checkpoints", found.path)
            self.journal.cut_back(found.progress.metrics_bytes)
            cut_back_ids(self.folder, found.progress.epoch, found.progress.batch)
        self.journal.track(self.config.track)

    def save(self) -> None:
        """Write a checkpoint that all ranks agree on; DivergenceError if weights are not finite."""
        self.skipped.settle(self.progress)
        self.progress.loss_sums, self.progress.seconds = self.loss_sums(), self.seconds()
        self.share_buffers()
        divergence.check_weights(not_finite(self.model.network), self.folder, self.progress)
        average = self.stepper.average
        tensors = checkpoint.Tensors(
            network=self.model.network.state_dict(),
            optimizer=self.stepper.moments(),
            average=average.network.state_dict() if average is not None else {},
        )
        collectives.check_ranks_equal(self.model.network, self.device, "at a checkpoint")
        self.progress.metrics_bytes = self.journal.size()
        scaler = self.accelerator.scaler
        collectives.on_rank_0(
            lambda: checkpoint.save(
                self.folder / "checkpoints",
                self.config.train.keep_checkpoints,
                self.progress,
                self.identity,
                tensors,
                scaler.state_dict() if scaler is not None else None,
            ),
            self.device,
        )
        self.watchdog.progress(self.progress.step)

    def stopped(self, why: str) -> dict[str, Any]:
        """Say how to go on with a run that was asked to stop."""
        progress = self.progress
        self.journal.say(
            f"stopped by {why} at epoch {progress.epoch + 1}, batch {progress.batch + 1}; everything is "
            f"saved in {self.folder}: the same command goes on from there"
        )
        return {
            "run": str(self.folder),
            "stopped": why,
            "epoch": progress.epoch,
            "batch": progress.batch,
        }

    def result(self) -> dict[str, Any]:
        """Write result.json and say where to look next; DivergenceError if there is no best model."""
        divergence.check_any_finite(self.progress.best, self.folder)
        written: list[dict[str, Any]] = []
        collectives.on_rank_0(lambda: written.append(write_result(self.folder)), self.device)
        result: dict[str, Any] = collectives.share_json(written[:1], self.device)[0]
        for line in closing_lines(self.config, result, self.model) if self.rank == 0 else []:
            self.journal.say(line)
        return result

    def seconds(self) -> float:
        """Return how long was trained, over all starts, what was lost and done again left out."""
        return time.monotonic() - self.started

    def share_buffers(self) -> None:
        """Give every rank rank 0's running statistics."""
        collectives.share_buffers(self.model.network)
        if self.stepper.average is not None:
            collectives.share_buffers(self.stepper.average.network)

    def loss_sums(self) -> list[float]:
        """Return the sum of this epoch's losses so far, of each rank."""
        sums: list[float] = collectives.gather_rows(self.loss_sum.view(1), self.world).tolist()
        return sums
