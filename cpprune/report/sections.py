"""Sections of a run's report: settings, curves, predictions, calibration, mistakes, environment."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cpprune.report import charts
from cpprune.report.charts import Event, Series
from cpprune.report.evaluation import Evaluation, is_training_data
from cpprune.report.page import (
    Block,
    Cell,
    Clips,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    count,
    decimal,
)
from cpprune.report.run_folder import Run


def training_section(run: Run, evaluation: Evaluation | str) -> Section:
    """Return the network, the main settings and the dataset."""
    settings, about = run.settings, run.about
    epochs = settings.get("train.epochs")
    facts = [
        (
            "network",
            str(run.model.family if run.model else settings.get("model.name") or "unknown"),
        ),
        ("initial weights", str(settings.get("init") or "random")),
        ("seed", str(settings.get("seed"))),
        ("epochs", f"{len(run.epochs)} of {epochs}"),
        ("batch size", f"{settings.get('train.batch_size')} clips over all processes"),
        (
            "optimizer",
            f"{settings.get('optim.name')}, learning rate {settings.get('optim.lr')}, weight decay "
            f"{settings.get('optim.weight_decay')}, schedule {settings.get('optim.schedule')}",
        ),
        ("precision", str(settings.get("train.precision"))),
    ]
    if run.skipped:
        facts.append(("skipped steps", f"{run.skipped}, whose gradient was not finite"))
    if run.model is not None:
        facts.append(("classes", f"{len(run.model.classes)}: {', '.join(run.model.classes)}"))
    facts.append(("dataset", str(settings.get("data.path"))))
    facts.append(("dataset fingerprint", str(about.dataset if about else "unknown")))
    blocks: list[Block] = [Facts(facts)]
    if isinstance(evaluation, Evaluation):
        clips = ", ".join(f"{n:,} {name}" for name, n in evaluation.dataset.splits.items())
        facts.append(("clips", clips))
        if not is_training_data(run, evaluation):
            text = f"The dataset in {evaluation.dataset.path} is not the one that the run was "
            text += "trained on: "
            blocks.append(Text(f"{text}its fingerprint is {evaluation.dataset.fingerprint}."))
    return Section("Training", blocks)


def curves_section(run: Run) -> Section:
    """Return losses, accuracies and learning rate over epochs."""
    title = "Curves"
    if not run.epochs:
        return Section(title, [Text("No epoch is complete, so there are no curves.")])
    numbers = [record.epoch + 1 for record in run.epochs]
    events = [Event(cut.epoch + 1, "✂", "pruned") for cut in run.cuts]
    if run.quantised:
        events.append(Event(run.quantised.epoch + 1, "int8", "quantised"))
    marks = {event.mark: event.what for event in events}
    legend = "".join(f"; {mark}: {what}" for mark, what in marks.items())
    best = run.about.epoch + 1 if run.about else None

    def drawn(label: str, *lines: Series, zero: bool = False) -> Figure:
        drawing = charts.curves(
            f"{label} over epochs", label, numbers, lines, events=events, best=best, zero=zero
        )
        return Figure(drawing, f"{label} over epochs{legend}.")

    loss = drawn(
        "Loss in nats",
        Series("training", [record.train_loss for record in run.epochs]),
        Series("validation", [record.val_log_loss for record in run.epochs]),
    )
    accuracy = drawn(
        "Validation accuracy",
        Series("macro accuracy", [record.val_macro_accuracy for record in run.epochs]),
        Series("accuracy", [record.val_accuracy for record in run.epochs]),
    )
    rates = Series("learning rate", [record.lr for record in run.epochs])
    rate = drawn("Learning rate", rates, zero=True)
    return Section(title, [replace(loss, table=_epoch_table(run)), accuracy, rate])


def _epoch_table(run: Run) -> Table:
    head = ["epoch", "learning rate", "train loss", "val log loss", "val macro accuracy"]
    rows = [
        [
            Cell(str(record.epoch + 1), record.epoch),
            Cell(f"{record.lr:.3g}", record.lr),
            *map(decimal, (record.train_loss, record.val_log_loss, record.val_macro_accuracy)),
        ]
        for record in run.epochs
    ]
    return Table("Epochs", head, rows)


def predictions_section(run: Run, evaluation: Evaluation | str) -> Section:
    """Return the confusion matrix, and accuracies by class, device, city and device group."""
    title = "Predictions"
    if isinstance(evaluation, str):
        return Section(title, [Text(evaluation)])
    metrics = evaluation.metrics
    text = (
        f"{metrics['clips']:,} clips of the split {evaluation.split}: macro accuracy "
        f"{metrics['macro_accuracy']:.4f}, accuracy {metrics['accuracy']:.4f}, log loss "
        f"{metrics['log_loss']:.4f}."
    )
    if evaluation.split == "val":
        text += (
            " The best epoch was selected on this split; for an unbiased estimate, make the report with "
            "--split test."
        )
    precision = run.settings.get("train.precision", "no")
    if precision != "no":
        text += f" Evaluated in float32; the curves above are in {precision}."
    blocks: list[Block] = [Text(text)]
    names = list(evaluation.dataset.classes)
    caption = "Rows: true class; columns: predicted class; shade: fraction of the row."
    matrix = Figure(
        charts.confusion(names, metrics["confusion"]), caption, _counts(names, metrics["confusion"])
    )
    blocks += [matrix, _accuracies("class", metrics["per_class"])]
    for what, key in (("device", "device"), ("city", "city"), ("device group", "group")):
        if metrics[f"per_{key}"]:
            blocks.append(_accuracies(what, metrics[f"per_{key}"]))
    return Section(title, blocks)


def _counts(names: list[str], counts: Sequence[Sequence[int]]) -> Table:
    rows = [[Cell(name), *map(count, line)] for name, line in zip(names, counts, strict=True)]
    return Table("Clips by true (rows) and predicted class (columns)", ["true", *names], rows)


def _accuracies(what: str, values: Mapping[str, Mapping[str, float]]) -> Table:
    rows = []
    for name, row in values.items():
        shown = Cell(charts.bar(row["accuracy"]) + f"{row['accuracy']:.4f}", row["accuracy"])
        rows.append([Cell(name), shown, decimal(row["log_loss"]), count(row["clips"])])
    return Table(f"By {what}", [what, "accuracy", "log loss", "clips"], rows)


def calibration_section(evaluation: Evaluation | str) -> Section:
    """Return the reliability diagram."""
    title = "Calibration"
    if isinstance(evaluation, str):
        return Section(title, [Text(evaluation)])
    found = evaluation.metrics["calibration"]
    caption = (
        f"Expected calibration error {found['expected_calibration_error']:.4f} (Guo et al., 2017). The "
        "bars of a perfectly calibrated model would end on the dashed line."
    )
    rows = [
        [decimal(found["confidence"][n], 3), decimal(found["accuracy"][n], 3), count(clips)]
        for n, clips in enumerate(found["clips"])
        if clips
    ]
    table = Table("Bins of confidence", ["mean confidence", "accuracy", "clips"], rows)
    return Section(title, [Figure(charts.reliability(**found), caption), table])


def mistakes_section(evaluation: Evaluation | str) -> Section:
    """Return the clips that the model misclassifies with the highest confidence."""
    title = "Most confident mistakes"
    if isinstance(evaluation, str):
        return Section(title, [Text(evaluation)])
    if not evaluation.mistakes:
        return Section(title, [Text("None to show.")])
    text = "Input of the network; light is loud, low frequencies are at the bottom. "
    if evaluation.dataset.kind == "image":
        text = "Input of the network. "
    owner = "The clips belong to the dataset: check its licence before sharing this page."
    return Section(title, [Text(text + owner), Clips(evaluation.mistakes)])


def throughput_section(run: Run) -> Section:
    """Return throughput and memory."""
    title = "Throughput and memory"
    speeds = [record.clips_per_second for record in run.epochs]
    memory = [record.memory_bytes / 2**20 for record in run.epochs]
    if not any(math.isfinite(value) for value in speeds):
        return Section(title, [Text("No throughput was logged.")])
    numbers = [record.epoch + 1 for record in run.epochs]
    facts = [("training time", _duration(total_seconds(run)))]
    drawing = charts.curves(
        "Training throughput in clips per second, over epochs",
        "clips/s",
        numbers,
        [Series("clips/s", speeds)],
        zero=True,
    )
    blocks: list[Block] = [
        Facts(facts),
        Figure(drawing, "Training throughput in clips per second."),
    ]
    if any(math.isfinite(value) for value in memory):
        where = "the GPU" if run.environment.gpus else "the host"
        label = f"Peak memory so far on {where}, rank 0"
        lines = [Series("MiB", memory)]
        drawing = charts.curves(f"{label}, over epochs", "MiB", numbers, lines, zero=True)
        blocks.append(Figure(drawing, f"{label}."))
    return Section(title, blocks)


def total_seconds(run: Run) -> float:
    """Return the seconds of training, summed over all starts of the run."""
    seconds = [record.seconds for record in run.epochs]
    ends = [a for a, b in zip(seconds, [*seconds[1:], 0.0], strict=True) if b < a]
    return math.fsum(ends)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def environment_section(run: Run) -> Section:
    """Return host, packages, and the command that reproduces the run."""
    there = run.environment
    facts = [
        ("host", str(there.host)),
        ("platform", str(there.platform)),
        ("GPUs", ", ".join(map(str, there.gpus or [])) or "none"),
        ("threads", str(there.threads)),
        ("Python", str(there.python)),
        *((name, str(version)) for name, version in (there.packages or {}).items()),
    ]
    again = (
        f"cpprune train --config {shlex.quote(str(run.folder / 'config.yaml'))} --run runs/again"
    )
    called = [str(word) for word in there.command or []]
    if called:
        called[0] = "cpprune" if Path(called[0]).name in ("cpprune", "cli.py") else called[0]
    return Section(
        "Environment and reproduction",
        [
            Facts(facts),
            Text("Last command:"),
            Text(shlex.join(called) or "unknown", code=True),
            Text("To train it again with the same settings:"),
            Text(again, code=True),
        ],
    )
