"""Progress of a run on a terminal: a live line for the epoch, and a summary at the end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from torch import Tensor

from cpprune.config import RunConfig
from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.evaluation.operations import count_operations, operations_text
from cpprune.models.artifact import deployed
from cpprune.models.factory import is_factory
from cpprune.pruning.budget import Limit, parse_budget
from cpprune.pruning.measured import amount
from cpprune.runs.tracking import read_state
from shards.credentials import without_credentials

if TYPE_CHECKING:
    from cpprune.data.loader import Batch
    from cpprune.models.artifact import Model
    from cpprune.runs.checkpoint import Saved
    from cpprune.runs.records import EpochRecord, RunResult

# The loss is on the device. Reading it waits for all earlier steps, so on a GPU it is read rarely.
STEPS_BETWEEN_READINGS = 50
SECONDS_BETWEEN_READINGS = 0.25


@contextmanager
def epoch_line(
    epoch: str, batches: int, clips: int, done: int, accuracy: float, loss_sum: Tensor
) -> Iterator[Callable[[Batch], None]]:
    """Show the progress of an epoch while the block runs, if standard error is a terminal.

    Args:
        epoch: such as "3/50".
        batches: of a whole epoch.
        clips: of a whole epoch.
        done: clips of it that were trained on before a resume.
        accuracy: macro accuracy on validation of the last epoch; NaN if there was none.
        loss_sum: of all losses of this rank, on the device, which the caller adds to.

    Yields:
        A function to call with every batch after its step.
    """
    if not sys.stderr.isatty():
        yield lambda batch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"epoch {epoch}"),
        BarColumn(bar_width=None),
        TextColumn("batch {task.fields[batch]}" + f"/{batches}"),
        TextColumn("{task.fields[speed]:,.0f} clips/s"),
        TimeRemainingColumn(compact=True),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("" if accuracy != accuracy else f"val macro accuracy {accuracy:.4f}"),
    )
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        refresh_per_second=4,
        expand=True,
        transient=True,  # the line that says how it went takes its place
    )
    with bar:
        task = bar.add_task("", total=clips, completed=done, batch=0, speed=0.0, loss="…")
        loss = RunningLoss(loss_sum)
        began = time.monotonic()
        trained = 0

        def advance(batch: Batch) -> None:
            nonlocal trained
            trained += len(batch.ids)
            bar.update(
                task,
                advance=len(batch.ids),
                batch=batch.number + 1,
                speed=trained / max(time.monotonic() - began, 1e-9),
                loss=loss.after(batch.stop - batch.start),
            )

        yield advance


class RunningLoss:
    """The mean loss of the latest steps, read from the device only now and then.

    Args:
        loss_sum: of all losses of this rank, on the device, which the caller adds to.
    """

    def __init__(self, loss_sum: Tensor) -> None:
        self.loss_sum = loss_sum
        self.wait = 1 if loss_sum.device.type == "cpu" else STEPS_BETWEEN_READINGS
        self.text = "…"
        self._read()

    def _read(self) -> None:
        self.sum, self.time, self.clips, self.steps = self.loss_sum.item(), time.monotonic(), 0, 0

    def after(self, clips: int) -> str:
        """Return the loss, after a step with so many clips of this rank."""
        self.clips += clips
        self.steps += 1
        late = time.monotonic() - self.time >= SECONDS_BETWEEN_READINGS
        if late and self.steps >= self.wait and self.clips:
            before, over = self.sum, self.clips
            self._read()
            self.text = f"{(self.sum - before) / over:.4f}"
        return self.text


def opening_text(config: RunConfig, model: Model, clips: int, steps: int) -> str:
    """Return the first line of a run: the network, and `clips` in `steps` an epoch."""
    network = deployed(model).network
    macs = count_macs(network, model.input_shape)
    more = operations_text(macs, count_operations(network, model.input_shape))
    return (
        f"{config.run}: {model.family} with {count_parameters(network):,} parameters and {macs:,} "
        f"MACs{more}, {clips:,} clips in {steps} step(s) an epoch, precision {config.train.precision}"
    )


def resumed_text(folder: Path, found: Saved, epochs: int) -> str:
    """Return the first line of a resumed run of `epochs` in all."""
    progress = found.progress
    if progress.epoch >= epochs:
        return f"{folder}: is complete already"
    where = f"epoch {progress.epoch + 1}, batch {progress.batch + 1}"
    return f"{folder}: goes on from {found.path.name} ({where})"


def figure_text(value: float | None) -> str:
    """Format a loss or an accuracy; None stands for one that is not finite."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3g}"


def epoch_text(record: EpochRecord, epochs: int) -> str:
    """Return the line that summarises an epoch.

    Args:
        record: of metrics.jsonl.
        epochs: in all.
    """
    text = (
        f"epoch {record.epoch + 1}/{epochs}  loss {figure_text(record.train_loss)}  "
        f"val loss {figure_text(record.val_log_loss)}  "
        f"val macro accuracy {figure_text(record.val_macro_accuracy)}{' *' if record.best else '  '}  "
        f"lr {record.lr:.1e}  {record.clips_per_second:,.0f} clips/s"
    )
    return f"{text}  ({record.reason})" if record.reason else text


def closing_lines(config: RunConfig, result: RunResult, model: Model) -> list[str]:
    """Return the summary of a finished run, and where to look next.

    Args:
        config: of the run.
        result: what result.json holds.
        model: of the final size, on the device that it was trained on.
    """
    val, tracked = result.val, read_state(Path(config.run)).look
    module = model.family.partition(":")[0] if is_factory(model.family) else ""
    trusted = f" --trust {quote(module)}" if module else ""
    look = [f"{config.run}/metrics.jsonl", *([tracked] if tracked else [])]
    return [
        f"done: best model of epoch {result.epoch + 1} in {result.model}: "
        f"{result.parameters:,} parameters, val macro accuracy "
        f"{figure_text(val.macro_accuracy)}; next: cpprune evaluate {quote(result.model)} "
        f"--data {quote(without_credentials(config.data.path))}{trusted}",
        f"  best by {config.train.monitor}: accuracy {figure_text(val.accuracy)}, log loss "
        f"{figure_text(val.log_loss)} over {val.clips:,} clips of validation",
        f"  costs {result.parameters:,} parameters and {result.macs:,} MACs"
        f"{operations_text(result.macs, result.operations)}",
        *_budget_lines(config.prune.budget, result, model),
        f"  curves: {'; '.join(look)}",
    ]


def _budget_lines(budget: str | None, result: RunResult, model: Model) -> list[str]:
    if budget is None:
        return []
    limits = parse_budget(budget)
    used: dict[str, float] = {"params": result.parameters, "macs": result.macs}
    if result.operations is not None:
        used["operations"] = result.operations
    for limit in limits:
        if (limit.measured or limit.exported) and limit.quantity not in used:
            used[limit.quantity] = amount(limit, model.network, model.input_shape)
    return [f"  budget: {', '.join(_verdict(limit, used[limit.quantity]) for limit in limits)}"]


def _verdict(limit: Limit, used: float) -> str:
    verdict = "is met" if used <= limit.bound else "is NOT met"
    now = f" ({used:.3g} ms now)" if limit.kind == "latency" else ""
    return f"{limit.text} {verdict}{now}"
