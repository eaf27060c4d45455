"""The parts of a run's report that its journal and its predictions tell."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpprune.report import charts
from cpprune.report.charts import Series
from cpprune.report.measured import Measured, same_data
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
    fraction,
)
from cpprune.report.runs import Run


def training_section(run: Run, measured: Measured | str) -> Section:
    """Return what was trained, and on what."""
    settings, about = run.settings, run.about
    epochs = settings.get("train.epochs")
    facts = [
        ("network", str(run.model.family if run.model else settings.get("model.name"))),
        ("started from", str(settings.get("init") or "fresh weights")),
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
        facts.append(("skipped steps", f"{run.skipped}: their gradient was not finite"))
    if run.model is not None:
        facts.append(("classes", f"{len(run.model.classes)}: {', '.join(run.model.classes)}"))
    facts.append(("dataset", str(settings.get("data.path"))))
    facts.append(("its fingerprint", str(about.get("dataset", "unknown"))))
    blocks: list[Block] = [Facts(facts)]
    if isinstance(measured, Measured):
        clips = ", ".join(f"{n:,} {name}" for name, n in measured.dataset.splits.items())
        facts.append(("clips", clips))
        if not same_data(run, measured):
            text = f"The data in {measured.dataset.path} is not what the run was trained on: its "
            blocks.append(Text(f"{text}fingerprint is {measured.dataset.fingerprint}."))
    return Section("What was trained", blocks)


def curves_section(run: Run) -> Section:
    """Return losses, accuracies and the learning rate over the epochs."""
    title = "Curves"
    if not run.epochs:
        return Section(title, [Text("No epoch was finished, so there are no curves.")])
    numbers = [record["epoch"] + 1 for record in run.epochs]
    cuts = [cut["epoch"] + 1 for cut in run.cuts]
    best = run.about["epoch"] + 1 if run.about else None

    def drawn(label: str, zero: bool = False, **lines: str) -> Figure:
        series = [
            Series(name.replace("_", " "), [record[key] for record in run.epochs])
            for name, key in lines.items()
        ]
        drawing = charts.curves(
            f"{label} over epochs", label, numbers, series, cuts=cuts, best=best, zero=zero
        )
        return Figure(drawing, f"{label} over epochs{'; ✂: pruned' * bool(cuts)}.")

    loss = drawn("Loss in nats", training="train_loss", validation="val_log_loss")
    accuracy = drawn(
        "Validation accuracy", macro_accuracy="val_macro_accuracy", accuracy="val_accuracy"
    )
    rate = drawn("Learning rate", zero=True, learning_rate="lr")
    return Section(title, [replace(loss, table=_epoch_table(run)), accuracy, rate])


def _epoch_table(run: Run) -> Table:
    head = ["epoch", "learning rate", "train loss", "val log loss", "val macro accuracy"]
    rows = [
        [
            Cell(str(record["epoch"] + 1), record["epoch"]),
            Cell(f"{record['lr']:.3g}", record["lr"]),
            *(fraction(record[k]) for k in ("train_loss", "val_log_loss", "val_macro_accuracy")),
        ]
        for record in run.epochs
    ]
    return Table("Epochs", head, rows)


def result_section(run: Run, measured: Measured | str) -> Section:
    """Return accuracies by class, device, device group and city, and the confusion matrix."""
    title = "Predictions"
    if isinstance(measured, str):
        return Section(title, [Text(measured)])
    figures = measured.figures
    text = (
        f"{figures['clips']:,} clips of the split {measured.split}: macro accuracy "
        f"{figures['macro_accuracy']:.4f}, accuracy {figures['accuracy']:.4f}, log loss "
        f"{figures['log_loss']:.4f}."
    )
    if measured.split == "val":
        text += (
            " This split chose the best epoch; for clips that chose nothing, make the report with "
            "--split test."
        )
    precision = run.settings.get("train.precision", "no")
    if precision != "no":
        text += f" Measured in float32; the curves above are in {precision}."
    blocks: list[Block] = [Text(text)]
    names = list(measured.dataset.classes)
    caption = "Rows: the true class; columns: the predicted one; the shade is the part of the row."
    matrix = Figure(charts.confusion(names, figures["confusion"]), caption, _counts(names, figures))
    blocks += [matrix, _accuracies("class", figures["per_class"])]
    for what, key in (("device", "device"), ("city", "city"), ("device group", "group")):
        if figures[f"per_{key}"]:
            blocks.append(_accuracies(what, figures[f"per_{key}"]))
    return Section(title, blocks)


def _counts(names: list[str], figures: Mapping[str, Any]) -> Table:
    rows = [
        [Cell(name), *map(count, line)]
        for name, line in zip(names, figures["confusion"], strict=True)
    ]
    return Table("Clips by true (rows) and predicted class (columns)", ["true", *names], rows)


def _accuracies(what: str, values: Mapping[str, Mapping[str, float]]) -> Table:
    rows = []
    for name, row in values.items():
        shown = Cell(charts.bar(row["accuracy"]) + f"{row['accuracy']:.4f}", row["accuracy"])
        rows.append([Cell(name), shown, fraction(row["log_loss"]), count(row["clips"])])
    return Table(f"By {what}", [what, "accuracy", "log loss", "clips"], rows)


def calibration_section(measured: Measured | str) -> Section:
    """Return how far confidences can be believed."""
    title = "Calibration"
    if isinstance(measured, str):
        return Section(title, [Text(measured)])
    found = measured.figures["calibration"]
    caption = (
        f"Expected calibration error {found['expected_calibration_error']:.4f} (Guo et al., 2017): the "
        "bars would end at the dashed line if a confidence were a probability."
    )
    rows = [
        [fraction(found["confidence"][n], 3), fraction(found["accuracy"][n], 3), count(clips)]
        for n, clips in enumerate(found["clips"])
        if clips
    ]
    table = Table("Bins of confidence", ["mean confidence", "accuracy", "clips"], rows)
    return Section(title, [Figure(charts.reliability(found), caption), table])


def mistakes_section(measured: Measured | str) -> Section:
    """Return the clips that the model is most wrong about."""
    title = "Most confident mistakes"
    if isinstance(measured, str):
        return Section(title, [Text(measured)])
    if not measured.mistakes:
        return Section(title, [Text("There are none to show.")])
    text = "What the network was given; light is loud, low frequencies are at the bottom. "
    if measured.dataset.kind == "image":
        text = "What the network was given. "
    owner = (
        "These clips are the dataset's, under its licence: mind it before you pass this page on."
    )
    return Section(title, [Text(text + owner), Clips(measured.mistakes)])


def machine_section(run: Run) -> Section:
    """Return throughput and memory."""
    title = "Throughput and memory"
    speeds = [record.get("clips_per_second", math.nan) for record in run.epochs]
    memory = [record.get("memory_bytes", math.nan) / 2**20 for record in run.epochs]
    if not any(math.isfinite(value) for value in speeds):
        return Section(title, [Text("The journal tells no throughput.")])
    numbers = [record["epoch"] + 1 for record in run.epochs]
    facts = [("time of training", _duration(total_seconds(run)))]
    drawing = charts.curves(
        "Training clips a second over epochs",
        "clips/s",
        numbers,
        [Series("clips/s", speeds)],
        zero=True,
    )
    blocks: list[Block] = [Facts(facts), Figure(drawing, "Training clips a second.")]
    if any(math.isfinite(value) for value in memory):
        where = "the GPU" if run.environment.get("gpus") else "the host"
        label = f"Most memory held so far on {where} by the first process"
        lines = [Series("MiB", memory)]
        drawing = charts.curves(f"{label}, over epochs", "MiB", numbers, lines, zero=True)
        blocks.append(Figure(drawing, f"{label}."))
    return Section(title, blocks)


def total_seconds(run: Run) -> float:
    """Return how long was trained, over all the times the run was started."""
    seconds = [float(record.get("seconds", 0)) for record in run.epochs]
    ends = [a for a, b in zip(seconds, [*seconds[1:], 0.0], strict=True) if b < a]
    return math.fsum(ends)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def environment_section(run: Run) -> Section:
    """Return what the run ran on, and how to run it again."""
    there = run.environment
    packages = there.get("packages") or {}
    facts = [
        ("host", str(there.get("host", "unknown"))),
        ("platform", str(there.get("platform", "unknown"))),
        ("GPUs", ", ".join(map(str, there.get("gpus") or [])) or "none"),
        ("threads", str(there.get("threads", "unknown"))),
        ("Python", str(there.get("python", "unknown"))),
        *((str(name), str(version)) for name, version in packages.items()),
    ]
    again = (
        f"cpprune train --config {shlex.quote(str(run.folder / 'config.yaml'))} --run runs/again"
    )
    called = [str(word) for word in there.get("command") or []]
    if called:
        called[0] = "cpprune" if Path(called[0]).name in ("cpprune", "cli.py") else called[0]
    return Section(
        "Environment and reproduction",
        [
            Facts(facts),
            Text("It was last called as"),
            Text(shlex.join(called) or "unknown", code=True),
            Text("Its resolved settings train the same again:"),
            Text(again, code=True),
        ],
    )
