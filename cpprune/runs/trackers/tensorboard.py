"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from cpprune.deps.torch import write_hparams
from cpprune.evaluation.plots import confusion_figure
from cpprune.runs.trackers.tracker import FinishedRun, Table, scalars

SHOWN_METRICS = ("val_macro_accuracy", "val_log_loss", "parameters")


class TensorBoard:
    """Event files of a run; see `tracker.Tracker`.

    Args:
        folder: folder of the run.
        config: its configuration, by dotted key.
        is_new: whether nothing has been logged yet.
    """

    def __init__(self, folder: Path, config: dict[str, object], is_new: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard")
        self.id = folder.name
        self.look = f"tensorboard --logdir {quote(str(folder / 'tensorboard'))}"
        self.rest = "begin the same command again"
        if is_new:
            write_hparams(self.writer, config, SHOWN_METRICS)

    def log(self, record: dict[str, object]) -> None:
        """Log a line of metrics.jsonl."""
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, record.get("step"))
        self.writer.flush()

    def finish(self, run: FinishedRun) -> None:
        """Log tables and the confusion matrix."""
        figure = confusion_figure(run.classes, run.confusion_KK)
        self.writer.add_figure("val_confusion", figure)
        self.writer.add_text("val_per_class", _markdown(run.per_class()))
        if (widths := run.widths()).rows:
            self.writer.add_text("widths", _markdown(widths))

    def close(self, exit_code: int) -> None:
        """Close the event file."""
        self.writer.close()


def _markdown(table: Table) -> str:
    rows: list[list[object]] = [[*table.columns], *table.rows]
    head, *body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|---" * len(table.columns) + "|", *body])
