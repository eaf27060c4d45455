"""The training loop. Pruning is an event of it; without a schedule it is plain training."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import cpprune
import shards
from cpprune import artifact, checkpoint, distributed
from cpprune.calibration import measure_saliency
from cpprune.checkpoint import Progress
from cpprune.complexity import count_macs, count_parameters
from cpprune.config import RunConfig
from cpprune.data import TrainingBatches, check_fits
from cpprune.evaluation import evaluate_split
from cpprune.models.cp_resnet import conv_widths
from cpprune.models.registry import build_model
from cpprune.optim import lr_factor
from cpprune.pruning.plan import make_plan, read_plan
from cpprune.pruning.schedule import events, lr_span, plan_arguments
from cpprune.pruning.sparsity import Penalty
from cpprune.run import find_checkpoint, identity, write_result, write_start
from cpprune.start import start_model
from cpprune.stepper import Stepper
from shards.errors import InputError
from shards.progress import progress as progress_bar


def train(config: RunConfig, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Train as the configuration says, or go on where the run folder ends.

    Args:
        config: the whole tree.
        given: keys set by hand, which must not contradict the model of `config.init`.

    Returns:
        What `result.json` holds: the best validation figures, parameters and macs, and the folders.

    Raises:
        InputError: something in the configuration, the data or the run folder has to be mended.
    """
    with distributed.joined(config.train.precision, config.train.clip_norm) as accelerator:
        trainer = Trainer(config, given, accelerator)
        trainer.begin()
        for epoch in range(trainer.progress.epoch, config.train.epochs):
            trainer.prune_if_due(epoch)
            trainer.train_epoch(epoch)
            trainer.validate(epoch)
            trainer.save()
        return trainer.result()


class Trainer:
    """The state of a training run.

    Attributes:
        model: front end and network, unwrapped.
        progress: how far the run has come; with it, and the tensors, a run goes on.
    """

    def __init__(self, config: RunConfig, given: frozenset[str], accelerator: Any) -> None:
        self.config = config
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.folder = Path(config.run)
        self.dataset = shards.open_dataset(
            config.data.path, config.data.cache, config.data.cache_bytes
        )
        self.val = self.dataset.split("val")
        self.model = start_model(config, self.dataset, given)
        check_fits(self.dataset, self.model)
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
        )
        labels = torch.from_numpy(self.dataset.labels).to(self.device)
        self.stepper = Stepper(config, self.model, labels, accelerator)
        widths = conv_widths(self.model.network)
        self.progress = Progress(widths=widths, original_widths=widths)
        self.events = events(config.prune)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.train_loss = self.speed = self.lr = math.nan
        self.started = time.monotonic()

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
        progress.widths = conv_widths(network)
        progress.best = None  # only models of the final size count
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
        self.log(record)
        if self.rank == 0:
            (self.folder / "plans").mkdir(exist_ok=True)
            path = self.folder / "plans" / f"epoch-{epoch:04d}.json"
            path.write_text(json.dumps(cut.plan, indent=2) + "\n")
        self.say(
            f"pruned at epoch {epoch + 1} ({progress.events_done} of {len(self.events)}, "
            f"{prune.criterion}): {before:,} → {after:,} parameters, equal on {self.world} "
            "process(es)"
        )

    def penalty(self) -> Penalty | None:
        """Return what the loss has beside the cross-entropy until the last cut."""
        prune = self.config.prune
        if prune.sparsity == "none" or self.progress.events_done == len(self.events):
            return None
        return Penalty(
            self.model.network,
            self.model.input_shape,
            prune.sparsity,
            prune.sparsity_strength,
            until=self.events[-1].epoch,
        )

    def train_epoch(self, epoch: int) -> None:
        """Train on what is left of this epoch's global batches."""
        config, progress = self.config, self.progress
        first, end = lr_span(config.prune, epoch, config.train.epochs)
        factor = lr_factor(config.optim, epoch - first, end - first, progress.val_losses[first:])
        self.lr = config.optim.lr * factor
        self.stepper.set_lr(self.lr)
        self.model.network.train()
        begin, seen_before = time.monotonic(), progress.clips_seen
        left = self.batches.clips - seen_before
        show = self.rank == 0 and sys.stderr.isatty()
        with progress_bar(f"epoch {epoch + 1}", left, show=show) as advance:
            for batch in self.batches.epoch(epoch, progress.batch):
                self.loss_sum += self.stepper.step(epoch, batch, progress.step)
                progress.batch = batch.number + 1
                progress.step += 1
                progress.clips_seen += len(batch.ids)
                advance(len(batch.ids))
                every = config.train.checkpoint_steps
                if every and progress.step % every == 0 and progress.batch < len(self.batches):
                    self.save()
        self.train_loss = math.fsum(self.loss_sums()) / progress.clips_seen
        self.speed = (progress.clips_seen - seen_before) / max(time.monotonic() - begin, 1e-9)
        if not math.isfinite(self.train_loss):
            raise InputError(
                f"{self.folder}: the training loss is not finite in epoch {epoch + 1}; lower "
                "optim.lr or set train.clip_norm, and choose another --run or --resume never"
            )
        self.loss_sum.zero_()
        self.share_buffers()
        progress.epoch, progress.batch, progress.clips_seen = epoch + 1, 0, 0

    def validate(self, epoch: int) -> None:
        """Evaluate on the validation split; write the last model, and the best if it is that."""
        progress, config = self.progress, self.config
        with self.accelerator.autocast():
            figures = evaluate_split(
                self.stepper.evaluated, self.model.features, self.val, self.device
            )
        progress.val_losses.append(figures["log_loss"])
        value, sign = figures[config.train.monitor], 1 if config.train.monitor != "log_loss" else -1
        final_size = progress.events_done == len(self.events)
        best = final_size and (progress.best is None or sign * value > sign * progress.best)
        if best:
            progress.best = value
        record = {
            "epoch": epoch,
            "step": progress.step,
            "lr": self.lr,
            "train_loss": self.train_loss,
            **{f"val_{name}": figure for name, figure in figures.items()},
            "best": best,
            "parameters": count_parameters(self.model.network),
            "clips_per_second": self.speed,
            "seconds": time.monotonic() - self.started,
        }
        self.log(record)
        if self.rank == 0:
            self.model.about = self.about(epoch, figures)
            weights = self.stepper.evaluated.state_dict()
            artifact.save(self.model, self.folder / "model_last", weights=weights)
            if best:
                artifact.save(self.model, self.folder / "model", weights=weights)
        self.say(
            f"epoch {epoch + 1}/{config.train.epochs}  loss {self.train_loss:.4f}  val loss "
            f"{figures['log_loss']:.4f}  val accuracy {figures['macro_accuracy']:.4f}"
            f"{' *' if best else '  '}  lr {self.lr:.1e}  {self.speed:,.0f} clips/s"
        )

    def about(self, epoch: int, figures: dict[str, Any]) -> dict[str, Any]:
        """Return where the model comes from and how well it does, for model.json."""
        prune = self.config.prune
        pruning = {**asdict(prune), "original_widths": self.progress.original_widths}
        return {
            "provenance": {
                "cpprune": cpprune.__version__,
                "run": self.folder.name,
                "epoch": epoch,
                "seed": self.config.seed,
                "init": self.identity["init"],
                "dataset": self.dataset.fingerprint,
                "pruning": pruning if prune.prunes else None,
            },
            "metrics": {"val": figures},
        }

    def begin(self) -> None:
        """Go on from the run folder's last checkpoint, if there is one; else begin the folder."""
        found = find_checkpoint(self.folder, self.config.resume, self.identity)
        self.accelerator.wait_for_everyone()
        if self.rank == 0:
            write_start(self.folder, self.config, fresh=found is None)
        network = self.model.network
        if found is None:
            self.stepper.wrap({})
            self.stepper.penalty = self.penalty()
            self.say(
                f"{self.folder}: {self.model.family} with {count_parameters(network):,} parameters "
                f"and {count_macs(network, self.model.input_shape):,} MACs, {self.batches.clips:,} "
                f"clips an epoch, {self.world} process(es) on {self.device.type}, precision "
                f"{self.config.train.precision}"
            )
            return
        state = checkpoint.read_state(found)
        tensors = checkpoint.read_tensors(found)
        self.progress = progress = state.progress
        if progress.widths != conv_widths(network):
            # Fresh weights of the right widths; the checkpoint's follow.
            config = {**self.model.config, "widths": progress.widths}
            classes = len(self.model.classes)
            self.model.network = build_model(self.model.family, num_classes=classes, **config)
        self.model.network.load_state_dict(tensors.network)
        self.stepper.wrap(tensors.optimizer)
        self.stepper.penalty = self.penalty()
        if self.stepper.average is not None:
            self.stepper.average.network.load_state_dict(tensors.average)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        sums = progress.loss_sums
        if len(sums) == self.world:
            self.loss_sum.fill_(sums[self.rank])
        elif self.rank == 0:  # another number of processes goes on
            self.loss_sum.fill_(math.fsum(sums))
        if self.rank == 0:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.truncate(progress.metrics_bytes)
        self.say(
            f"{self.folder}: goes on from {found.name} (epoch {progress.epoch + 1}, batch "
            f"{progress.batch + 1})"
            if progress.epoch < self.config.train.epochs
            else f"{self.folder}: is complete already"
        )

    def save(self) -> None:
        """Write a checkpoint."""
        self.progress.loss_sums = self.loss_sums()
        self.share_buffers()
        average = self.stepper.average
        tensors = checkpoint.Tensors(
            network=self.model.network.state_dict(),
            optimizer=self.stepper.moments(),
            average=average.network.state_dict() if average is not None else {},
        )
        if self.rank == 0:
            log = self.folder / "metrics.jsonl"
            self.progress.metrics_bytes = log.stat().st_size if log.is_file() else 0
            scaler = self.accelerator.scaler
            checkpoint.save(
                self.folder / "checkpoints",
                self.config.train.keep_checkpoints,
                self.progress,
                self.identity,
                tensors,
                scaler.state_dict() if scaler is not None else None,
            )
        self.accelerator.wait_for_everyone()

    def result(self) -> dict[str, Any]:
        """Write result.json and say where to look next."""
        written = write_result(self.folder) if self.rank == 0 else None
        result: dict[str, Any] = distributed.share_json(written, self.device)
        self.say(
            f"done: best model of epoch {result['epoch'] + 1} in {result['model']}: "
            f"{result['parameters']:,} parameters, val macro accuracy "
            f"{result['val']['macro_accuracy']:.4f}; next: cpprune evaluate {result['model']} "
            f"--data {self.config.data.path}"
        )
        return result

    def share_buffers(self) -> None:
        """Give every rank rank 0's running statistics."""
        distributed.share_buffers(self.model.network)
        if self.stepper.average is not None:
            distributed.share_buffers(self.stepper.average.network)

    def loss_sums(self) -> list[float]:
        """Return the sum of this epoch's losses so far, of each rank."""
        sums: list[float] = distributed.gather_rows(self.loss_sum.view(1), self.world).tolist()
        return sums

    def log(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        if self.rank == 0:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def say(self, text: str) -> None:
        """Print a line on standard error, from rank 0 only."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)
