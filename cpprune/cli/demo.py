"""`cpprune demo`: from synthetic recordings to pruned networks, ending in one table."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import to_builtins

from cpprune.cli.arguments import OneLineParser
from cpprune.cli.export import parse_arguments, write_export
from cpprune.cli.output import message, table
from cpprune.cli.train import write_run_report
from cpprune.config import RunConfig
from cpprune.training.config import TrainConfig
from shards.build.output_folder import DATASET
from shards.cli.arguments import whole_number
from shards.errors import UserError
from shards.files.atomic import replace_file, writing
from shards.files.documents import to_json
from shards.files.ownership import Kind, claim, read_mark

if TYPE_CHECKING:
    from cpprune.export.check import Check

CLIPS = 4000

TRAIN_EPOCHS = 12
BATCH = 64

# What the pruned network is exported to, in its run folder. Compiled for this machine, C for
# microcontrollers is slow, so that fewer clips have to do.
EXPORTS = (("onnx", "pruned-int8.onnx", ()), ("c", "pruned-int8-c", ("--check-clips", "100")))
CALIBRATION_CLIPS = 64

MARK = "demo.json"


def _is_demo(folder: Path) -> bool:
    by_us = read_mark(folder / MARK).get("made_by") == "cpprune demo"
    # Older versions wrote no mark.
    made = DATASET.made(folder / "dataset") and (folder / "audio/meta.csv").is_file()
    return by_us or made


@dataclass(frozen=True, kw_only=True)
class DemoModel:
    """A network of the demo: its costs, and its metrics on the test split."""

    model: str
    folder: str
    parameters: int
    macs: int
    bytes: dict[str, int]
    macro_accuracy: float
    log_loss: float
    unseen_accuracy: float
    per_group: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class DemoExport:
    """What was exported from the pruned network: its size, and how it differs on the test split."""

    file: str
    to: str
    precision: str
    bytes: dict[str, int]
    check: Check


DEMO = Kind(
    name="a demo",
    parts=(MARK, "results.json", "audio/", "dataset/"),
    made=_is_demo,
)


def demo(argv: list[str]) -> int:
    """Build the dataset, train five networks, evaluate them, export the pruned one, print the tables."""
    parser = OneLineParser(
        "cpprune demo",
        description="Build a small synthetic dataset; train, prune, fine-tune and evaluate networks on "
        "it; export the pruned one to ONNX and C. Takes 5 to 15 minutes on two CPU cores, "
        "the least with AVX-512.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)"
    )
    parser.add_argument(
        "--clips", type=whole_number, default=CLIPS, help=f"clips to synthesise (default: {CLIPS})"
    )
    parser.add_argument(
        "--epochs",
        type=whole_number,
        default=TRAIN_EPOCHS,
        help=f"epochs of each training (default: {TRAIN_EPOCHS})",
    )
    arguments = parser.parse_args(argv)
    if arguments.clips < 200 or arguments.epochs < 1:
        raise UserError("--clips must be at least 200 and --epochs at least 1")

    begin = time.monotonic()
    out: Path = arguments.out
    claim(out, DEMO, "--out")
    made = read_mark(out / MARK).get("clips", arguments.clips)
    if made != arguments.clips and (out / "audio/meta.csv").is_file():
        raise UserError(
            f"--out {out}: holds a demo of {made} clips: give --clips {made} or another --out"
        )
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        about = {"made_by": "cpprune demo", "clips": arguments.clips, "epochs": arguments.epochs}
        replace_file(out / MARK, out, f"{to_json(about)}\n".encode())
    dataset = build(out, arguments.clips)
    rows = [
        run_and_evaluate(title, config, dataset)
        for title, config in configurations(out, dataset, arguments.epochs)
    ]
    exports, lacking = export_pruned(out / "pruned", dataset)
    if exports:
        write_run_report(str(out / "pruned"), str(dataset), anew=True)
    seconds = time.monotonic() - begin
    results = {
        "models": to_builtins(rows),
        "exports": to_builtins(exports),
        "clips": arguments.clips,
        "seconds": seconds,
    }
    with writing(out, "--out"):
        text = to_json(results, indent=2) + "\n"
        replace_file(out / "results.json", out, text.encode())
    if arguments.json:
        print(to_json(results))
    else:
        print(_text(rows))
        if exports:
            print(f"\n{_exports_text(exports)}")
        if lacking:
            print(f"\nNot exported: {lacking}")
        print(f"\n{seconds:.0f} s; everything is in {out}, the results in {out / 'results.json'}")
        print("One seed on synthetic clips: differences of a few percentage points are noise.")
    return 0


def build(out: Path, clips: int) -> Path:
    """Synthesise recordings and build their shards unless they exist; return the dataset folder."""
    import shards.cli.main
    from shards.sources.synthetic import remove_clips

    audio, dataset = out / "audio", out / "dataset"
    with redirect_stdout(sys.stderr):  # standard output is for the results
        if not (audio / "meta.csv").is_file():
            remove_clips(audio)  # left by a demo that was killed
            shards.cli.main.main(["synth", "--out", str(audio), "--clips", str(clips)])
        shards.cli.main.main(["build", "tau2022", "--source", str(audio), "--out", str(dataset)])
    return dataset


def configurations(out: Path, dataset: Path, epochs: int) -> list[tuple[str, RunConfig]]:
    """Return title and configuration of the five runs; `pruned` begins with the model of `big`."""
    from cpprune.data.config import DataConfig
    from cpprune.models.config import ModelConfig
    from cpprune.pruning.config import PruneConfig
    from cpprune.training.config import OptimConfig

    optim = OptimConfig(
        lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=2, last_factor=0.01
    )
    base = RunConfig(
        data=DataConfig(path=str(dataset)),
        optim=optim,
        train=TrainConfig(epochs=epochs, batch_size=BATCH, precision=_faster_precision()),
    )
    cut = PruneConfig(ratio=0.41)
    fine_tune = replace(optim, lr=2e-3, warmup_epochs=0)
    return [
        (
            "small (original)",
            replace(base, run=f"{out}/small", model=ModelConfig(channels_multiplier=1)),
        ),
        ("big", replace(base, run=f"{out}/big")),
        (
            "pruned",
            replace(base, run=f"{out}/pruned", init=f"{out}/big/model", prune=cut, optim=fine_tune),
        ),
        ("pruned from scratch", replace(base, run=f"{out}/scratch", prune=cut)),
        (
            "control 18/37/75",
            replace(base, run=f"{out}/control", model=ModelConfig(widths=[18, 37, 75])),
        ),
    ]


def _faster_precision() -> Literal["no", "bf16"]:
    """Return bf16; `no` (float32) on CPUs without AVX-512, which emulate bf16."""
    import torch

    emulated = "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return "no" if emulated and not torch.cuda.is_available() else "bf16"


def run_and_evaluate(title: str, config: RunConfig, dataset: Path) -> DemoModel:
    """Train a network, unless it is trained already, and evaluate its best epoch on the test split."""
    from cpprune.data.compatibility import open_for_model
    from cpprune.distributed.device import default_device
    from cpprune.evaluation.complexity import complexity
    from cpprune.evaluation.predict import evaluate_model
    from cpprune.models import artifact
    from cpprune.runs.records import StoppedRun
    from cpprune.training.loop import train

    message(f"\n{title}")
    trained = train(config, as_command=True)
    if isinstance(trained, StoppedRun):
        raise UserError("the demo was stopped; the same command resumes it")
    write_run_report(config.run, config.data.path)
    device = default_device()
    model = artifact.load(trained.model, device)
    report, _ = evaluate_model(model, open_for_model(str(dataset), model).split("test"), device)
    cost = complexity(model.network, model.input_shape)
    return DemoModel(
        model=title,
        folder=trained.model,
        parameters=cost["parameters"],
        macs=cost["macs"],
        bytes=cost["bytes"],
        macro_accuracy=report["macro_accuracy"],
        log_loss=report["log_loss"],
        unseen_accuracy=report["per_group"]["unseen"]["accuracy"],
        per_group=report["per_group"],
    )


def export_pruned(run: Path, dataset: Path) -> tuple[list[DemoExport], str | None]:
    """Export the model of a run to ONNX and C, and measure both on the test split.

    Args:
        run: folder of the run, which the files go to.
        dataset: folder of the dataset.

    Returns:
        exports: what was made.
        lacking: why something was not, such as packages that are not installed; else None.
    """
    exports, lacking = [], None
    for to, name, options in EXPORTS:
        out = run / name
        words = [str(run / "model"), "--to", to, "--out", str(out), "--precision", "int8"]
        words += ["--calibration-clips", str(CALIBRATION_CLIPS), "--data", str(dataset)]
        try:
            arguments = parse_arguments([*words, "--check", *options, "--force"])
            done = write_export(arguments)
        except (UserError, ImportError) as error:  # of packages that do not fit together
            lacking = " ".join(str(error).split())
            continue
        assert done.check is not None
        message(f"\n{out}: {done.product.summary}")
        made = DemoExport(
            file=str(out),
            to=to,
            precision=arguments.precision,
            bytes=done.product.complexity["bytes"],
            check=done.check,
        )
        exports.append(made)
    return exports, lacking


def _exports_text(exports: list[DemoExport]) -> str:
    from cpprune.export.exported import storage

    head = ["pruned", "bytes", "RAM", "clips", "accuracy", "of the model", "same class"]
    head += ["ms", "of torch"]
    rows = []
    for made in exports:
        size, check = made.bytes, made.check
        rows.append(
            [
                f"{Path(made.file).name}",
                f"{storage(size):,}",
                f"{size['ram']:,}" if "ram" in size else "–",
                f"{check.clips:,}",
                f"{check.accuracy.exported.accuracy:.4f}",
                f"{check.accuracy.model.accuracy:.4f}",
                f"{check.agreement:.1%}",
                f"{check.latency_ms.exported:.1f}",
                f"{check.latency_ms.model:.1f}",
            ]
        )
    note = "With the front end inside; ms: one clip on one thread of this machine's CPU."
    return f"{table(head, rows)}\n{note}"


def _text(rows: list[DemoModel]) -> str:
    head = ["model", "parameters", "MACs", "bytes fp16", "macro acc.", "log loss", "unseen dev."]
    cells = [
        [
            row.model,
            *(f"{n:,}" for n in (row.parameters, row.macs, row.bytes["fp16"])),
            *(f"{x:.4f}" for x in (row.macro_accuracy, row.log_loss, row.unseen_accuracy)),
        ]
        for row in rows
    ]
    return table(head, cells)
