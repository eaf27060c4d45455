"""The training loop. Pruning is an event of it; without a schedule it is plain training."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from msgspec import UNSET

import shards
from cpprune.audio.impulse_responses import load_responses
from cpprune.config import RunConfig
from cpprune.data.loader import TrainingLoader, selected_split
from cpprune.distill.cache import LogitsCache
from cpprune.distill.config import UNCUT
from cpprune.distill.teaching import Teaching
from cpprune.distributed import collectives, process_group
from cpprune.distributed.preemption import Preemption
from cpprune.distributed.watchdog import Watchdog
from cpprune.evaluation import metrics
from cpprune.evaluation.complexity import count_parameters
from cpprune.evaluation.predict import predict_split
from cpprune.models import artifact
from cpprune.models.finite import not_finite
from cpprune.pruning.plan import blocks_removed, remarks
from cpprune.pruning.pruner import Pruner
from cpprune.pruning.schedule import lr_span
from cpprune.runs import divergence, tracking
from cpprune.runs.checkpoint import Progress, Saved
from cpprune.runs.divergence import REMEDY, DivergenceError
from cpprune.runs.environment import peak_memory_bytes
from cpprune.runs.folder import RunFolder, provenance
from cpprune.runs.identity import identity, seen_by_teachers
from cpprune.runs.progress import closing_lines, epoch_line, epoch_text, opening_text, resumed_text
from cpprune.runs.records import EpochRecord, PruneRecord, QuantizeRecord, RunResult, StoppedRun
from cpprune.training import quantization
from cpprune.training.create_model import create_model
from cpprune.training.engine import Engine
from cpprune.training.optim import Span, lr_factor
from cpprune.training.skipped import SkippedSteps
from cpprune.training.step import TrainingStep
from cpprune.training.trial import try_step

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    config: RunConfig,
    explicit: frozenset[str] = frozenset(),
    *,
    as_command: bool = False,
    stopping: Preemption | None = None,
) -> RunResult | StoppedRun:
    """Train as the configuration says, or resume the run in its folder.

    Args:
        config: the whole tree.
        explicit: keys that were set explicitly, which must not contradict the model of `config.init`.
        as_command: the process is this run's own: SIGTERM and SIGINT stop it with a checkpoint, and
            ranks that hang end it.
        stopping: request to stop several runs, of which this is one.

    Returns:
        What `result.json` then holds; for a run that was asked to stop, where it goes on.

    Raises:
        UserError: something in the configuration, the data or the run folder has to be mended.
        DivergenceError: the run has failed, as result.json then says too.
    """
    precision, clip_norm = config.train.precision, config.train.clip_norm
    with process_group.joined(precision, clip_norm) as accelerator, ExitStack() as resources:
        trainer = Trainer(config, explicit, accelerator, resources, as_command, stopping)
        for epoch in range(trainer.progress.epoch, config.train.epochs):
            trainer.prune_if_due(epoch)
            trainer.quantize_if_due(epoch)
            stopped_by = trainer.train_epoch(epoch)
            if not stopped_by:
                trainer.validate(epoch)
            trainer.save()
            stopped_by = stopped_by or trainer.stopping.stop_reason(0, trainer.device)
            if stopped_by and trainer.progress.epoch < config.train.epochs:
                return trainer.stopped(stopped_by)
        return trainer.result()


class Trainer:
    """The state of a training run, from the beginning or from its last checkpoint on.

    Args:
        config: of the run.
        explicit: keys that were set explicitly.
        accelerator: from `process_group.joined`.
        resources: closes what the run holds, such as its folder.
        as_command, outer: see `train`; outer is its `stopping`.

    Attributes:
        model: front end and network, unwrapped.
        progress: how far the run has come; a checkpoint is this and the engine's tensors.
    """

    def __init__(
        self,
        config: RunConfig,
        explicit: frozenset[str],
        accelerator: Accelerator,
        resources: ExitStack,
        as_command: bool = False,
        outer: Preemption | None = None,
    ) -> None:
        tracking.require(config.track)
        self.config = config
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank, self.world = process_group.rank(), process_group.world_size()
        self.run = RunFolder(config, self.device)
        data = config.data
        self.dataset = shards.open_dataset(data.path, data.cache, data.cache_bytes)
        self.model = create_model(config, self.dataset, explicit)
        model = self.model
        responses = load_responses(
            config.augment, self.dataset, model.clip_shape, model.sample_rate
        )
        self.identity = identity(config, self.dataset, self.model)
        limit, patience = config.train.time_limit_minutes, 0.9 * process_group.timeout_seconds()
        self.stopping = resources.enter_context(Preemption(self.run.path, limit, as_command, outer))
        self.watchdog = resources.enter_context(Watchdog(patience, ends_process=as_command))
        resources.enter_context(self.run)
        saved = self.run.find_checkpoint(self.identity)
        if saved is not None:
            quantization.restore(saved, self.model, config.quantize)
        self.progress = saved.progress if saved else Progress.of(self.model.network)
        self.batches = TrainingLoader(
            self.dataset,
            data,
            config.train.batch_size,
            config.seed,
            rank=self.rank,
            world=self.world,
            device=self.device,
            drop_last=config.train.drop_last,
            ids_file=self.run.ids_file if data.record_ids else None,
            alive=self.beat,
        )
        cache = self._logits_cache()
        self.teaching = Teaching(config, self.dataset, self.batches.rows, self.device, cache)
        if self.teaching.awaits_uncut and self.progress.events_done:
            self.teaching.add_uncut(self.run.path / UNCUT)
        traits = try_step(self.model, config.train, self.batches.clips, self.device)
        train = selected_split(self.dataset, "train", data.only)
        self.pruner = Pruner(config.prune, self.model, train, config.seed, self.device)
        begun = self.progress
        self.pruner.rehearse(begun.epoch, begun.events_done, begun.original_widths)
        to_come = quantization.rehearse(config.quantize, self.model)
        accelerator.wait_for_everyone()  # before the folder changes
        self.run.open(saved)
        collectives.run_on_rank_0(self.stopping.remove_stop_file, self.device)
        self.started = time.monotonic() - self.progress.seconds
        self.engine = Engine(config, self.model, accelerator, traits, saved)
        resources.callback(self.engine.close)
        resources.enter_context(self.engine.cache(self.run.compiled))
        self.step = TrainingStep(config, self.engine, self.dataset.labels, responses, self.teaching)
        self.step.regularizer = self.pruner.regularizer(self.progress.events_done)
        self.skipped = SkippedSteps(self.dataset, self.run, config.train.max_skipped, self.device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.train_loss = self.speed = self.lr = self.accuracy = math.nan
        notes = [self._opening(saved), *([str(responses)] if responses else []), *self.model.notes]
        kept = [] if cache is None else [cache.there(config.train.epochs)]
        for line in (*notes, *traits.notes(self.device, config.train.compile), *to_come, *kept):
            self.run.say(line)

    def _logits_cache(self) -> LogitsCache | None:
        if self.config.distill.cache is None:
            return None
        folder, shape = self.config.distill.cache, (self.batches.clips, len(self.model.classes))
        made_with = seen_by_teachers(self.identity)
        return LogitsCache(Path(folder), made_with, shape, self.device, self.run.say)

    def beat(self) -> None:
        """Tell the watchdog that this rank does not hang."""
        self.watchdog.progress(self.progress.step)

    def _opening(self, saved: Saved | None) -> str:
        """Take over the loss of the epoch under way; return what is said when the run starts."""
        if saved is None:
            text = opening_text(self.config, self.model, self.batches.clips, len(self.batches))
            return f"{text}, {self.world} process(es) on {self.device.type}"
        sums = self.progress.loss_sums
        if len(sums) == self.world:
            self.loss_sum.fill_(sums[self.rank])
        elif self.rank == 0:  # another number of processes resumes
            self.loss_sum.fill_(sum(sums))
        return resumed_text(self.run.path, saved, self.config.train.epochs)

    def prune_if_due(self, epoch: int) -> None:
        """Prune the network if the schedule has an event at the beginning of this epoch."""
        progress, pruner, prune = self.progress, self.pruner, self.config.prune
        event = None if progress.batch else pruner.due(epoch, progress.events_done)
        if event is None:
            return
        if self.teaching.awaits_uncut:
            self.engine.share_buffers()
            self.run.write_model(UNCUT, self.model, self.engine.evaluated.state_dict())
            self.teaching.add_uncut(self.run.path / UNCUT)
        before = count_parameters(self.model.network)
        state = self.engine.optimizer_state() if prune.carry_state else {}
        cut = pruner.prune(event, progress.original_widths, state)
        self.engine.adopt(cut)
        progress.events_done += 1
        progress.note(self.model.network)
        progress.best, progress.best_step = None, -1  # only models of the final size count
        self.step.regularizer = pruner.regularizer(progress.events_done)
        after = count_parameters(self.model.network)
        self.run.write_log(
            PruneRecord(
                epoch=epoch,
                step=progress.step,
                criterion=prune.criterion if prune.cuts_channels else None,
                part=event.fraction,
                parameters_before=before,
                parameters=after,
                widths=progress.widths,
                removed_blocks=[block.name for block in cut.plan.removed_blocks],
                fingerprint=cut.fingerprint,
            )
        )
        self.run.write_plan(epoch, cut.plan)
        how = prune.criterion if prune.cuts_channels else "blocks"
        self.run.say(
            f"pruned at epoch {epoch + 1} ({progress.events_done} of {len(pruner.events)}, {how}): "
            f"{before:,} → {after:,} parameters, equal on {self.world} process(es)"
        )
        for line in [*blocks_removed(cut.plan), *remarks(cut.plan, progress.original_widths)]:
            self.run.say(line)

    def quantize_if_due(self, epoch: int) -> None:
        """Quantise the network if quantisation-aware training begins with this epoch."""
        progress, config = self.progress, self.config.quantize
        if not quantization.is_due(config, self.model, epoch):
            return
        fake = self.engine.quantize(config.keep_float)
        collectives.check_ranks_equal(self.model.network, self.device, "when it was quantised")
        progress.best, progress.best_step = None, -1  # only quantised models count
        record = QuantizeRecord(
            epoch=epoch,
            step=progress.step,
            layers=len(fake.layers),
            activations=len(fake.ranges),
            keep_float=config.keep_float,
        )
        self.run.write_log(record)
        self.run.say(
            f"quantised at epoch {epoch + 1}: {record.layers} layers, {record.activations} activations"
        )

    def train_epoch(self, epoch: int) -> str:
        """Train on what is left of this epoch's global batches.

        Returns:
            Why the run has to stop in the middle of the epoch; empty when the epoch is over.
        """
        config, progress = self.config, self.progress
        if asked := self.teaching.prepare(self.batches.training, self.beat):
            self.run.say(f"{asked} teacher(s) asked about {len(self.batches.rows):,} clips")
        if self.teaching.cache is not None:
            self.teaching.cache.begin(epoch, progress.batch)
        span = Span(*lr_span(config.prune, epoch, config.train.epochs), len(self.batches))
        self._set_lr(span, epoch, progress.batch)
        self.model.network.train()
        begin, seen_before = time.monotonic(), progress.clips_seen
        shown, clips = f"{epoch + 1}/{config.train.epochs}", self.batches.clips
        line = epoch_line(
            shown, len(self.batches), clips, seen_before, self.accuracy, self.loss_sum
        )
        with line if self.rank == 0 else nullcontext(lambda batch: None) as advance:
            for batch in self.batches.epoch(epoch, progress.batch):
                if config.optim.warmup_steps is not None:
                    self._set_lr(span, epoch, batch.number)
                result = self.step(epoch, batch, progress.step)
                self.loss_sum += result.loss_sum
                self.skipped.add(batch, result.skipped)
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
                if why := self.stopping.stop_reason(progress.step, self.device):
                    return why
                self.skipped.settle(progress, now=False)
        self.skipped.settle(progress)
        if self.teaching.cache is not None:
            self.teaching.cache.end(epoch)
        if progress.clips_seen <= 0:
            raise DivergenceError(
                f"{self.run.path}: the training loss is not finite in all of epoch {epoch + 1}; {REMEDY}"
            )
        self.train_loss = math.fsum(self.loss_sums()) / progress.clips_seen
        self.speed = (progress.clips_seen - seen_before) / max(time.monotonic() - begin, 1e-9)
        self.loss_sum.zero_()
        self.engine.share_buffers()
        progress.epoch, progress.batch, progress.clips_seen = epoch + 1, 0, 0
        return ""

    def _set_lr(self, span: Span, epoch: int, step: int) -> None:
        """Set the learning rate of a step of this epoch, or of the whole epoch."""
        optim, losses = self.config.optim, self.progress.val_losses
        self.lr = optim.lr * lr_factor(optim, span, epoch, step, losses)
        self.engine.set_lr(self.lr)

    def validate(self, epoch: int) -> None:
        """Evaluate on the validation split; write the last finite model, and the best if it is that."""
        progress, config = self.progress, self.config
        model, fetch = (self.engine.evaluated, self.model.features), self.batches.validation()
        with self.accelerator.autocast():
            logits = predict_split(*model, self.batches.val, self.device, fetch)
        log_prob, labels = metrics.log_softmax(logits), self.batches.val.labels
        summary = metrics.summary(log_prob, labels)
        progress.val_losses.append(summary["log_loss"])
        value, monitor = summary[config.train.monitor], config.train.monitor
        self.accuracy = math.nan if value is None else summary["macro_accuracy"]
        wrong = not_finite(self.engine.evaluated)
        final = progress.events_done == len(self.pruner.events)
        final = final and not quantization.is_to_come(config.quantize, self.model)
        best = final and not wrong and divergence.is_better(value, progress.best, monitor)
        if best:
            progress.best, progress.best_step = value, progress.step
        record = EpochRecord(
            epoch=epoch,
            step=progress.step,
            lr=self.lr,
            train_loss=self.train_loss,
            val_macro_accuracy=_nan(summary["macro_accuracy"]),
            val_accuracy=_nan(summary["accuracy"]),
            val_log_loss=_nan(summary["log_loss"]),
            val_clips=summary["clips"],
            best=best,
            parameters=count_parameters(artifact.deployed(self.model).network),
            clips_per_second=self.speed,
            memory_bytes=peak_memory_bytes(self.device),
            seconds=time.monotonic() - self.started,
            reason=divergence.why_not_finite(wrong, summary["log_loss"], self.train_loss),
            val_confusion=metrics.confusion_matrix(log_prob, labels).tolist() if best else UNSET,
        )
        self.run.write_log(record)
        self.model.metadata = provenance(config, self.identity, progress, epoch, summary)
        weights = self.engine.evaluated.state_dict()
        finite = value is not None and not wrong
        for name in ["model_last", "model"] if best else ["model_last"] * finite:
            self.run.write_model(name, self.model, weights)
        self.watchdog.progress(progress.step)
        self.run.say(epoch_text(record, config.train.epochs))

    def save(self) -> None:
        """Write a checkpoint that all ranks agree on; DivergenceError if weights are not finite."""
        self.skipped.settle(self.progress)
        self.progress.loss_sums = self.loss_sums()
        self.progress.seconds = time.monotonic() - self.started
        self.engine.share_buffers()
        divergence.check_weights(not_finite(self.model.network), self.run.path, self.progress)
        tensors = self.engine.tensors()
        collectives.check_ranks_equal(self.model.network, self.device, "at a checkpoint")
        scaler = self.engine.scaler_state()
        self.run.write_checkpoint(self.progress, self.identity, tensors, scaler)
        self.watchdog.progress(self.progress.step)

    def stopped(self, why: str) -> StoppedRun:
        """Say how to go on with a run that was asked to stop."""
        progress = self.progress
        self.run.say(
            f"stopped by {why} at epoch {progress.epoch + 1}, batch {progress.batch + 1}; everything is "
            f"saved in {self.run.path}: the same command goes on from there"
        )
        path = str(self.run.path)
        return StoppedRun(run=path, stopped=why, epoch=progress.epoch, batch=progress.batch)

    def result(self) -> RunResult:
        """Write result.json and say where to look next; DivergenceError if there is no best model."""
        divergence.check_any_finite(self.progress.best, self.run.path)
        result = self.run.write_result()
        for line in closing_lines(self.config, result, self.model) if self.rank == 0 else []:
            self.run.say(line)
        return result

    def loss_sums(self) -> list[float]:
        """Return the sum of this epoch's losses so far, of each rank."""
        sums: list[float] = collectives.all_gather_rows(self.loss_sum.view(1), self.world).tolist()
        return sums


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
