"""Does a model of its own help a device? `cpprune finetune` on the demo's models, device by device.

    cpprune demo --out runs/demo
    python benchmarks/devices.py

Every general model is fine-tuned on the clips of each device in training, with several settings and
seeds. Before and after are measured on the test split's clips of that device. After is what the command
serves: the fine-tuned model if it was better on the device's validation clips, else the general one;
"tuned" is the fine-tuned model, kept or not. Finished results are kept, so a stopped benchmark goes on
where it was. Needs `pip install 'cpprune[report]'` (scipy).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from methods import cpprune

import shards
from cpprune import load
from cpprune.evaluation.metrics import log_softmax
from cpprune.evaluation.statistics import Difference, holm, paired_test
from shards.split import Split

BATCH: list[object] = ["--train.batch_size", 64, "--min-clips", 50]
CONSTANT: list[object] = ["--optim.schedule", "constant"]
COSINE: list[object] = ["--optim.schedule", "cosine", "--optim.warmup_epochs", 0]
SETTINGS: dict[str, list[object]] = {
    "1 epoch, 5e-4": ["--train.epochs", 1, "--optim.lr", 5e-4, *CONSTANT],
    "5 epochs, 5e-4": [*COSINE, "--train.epochs", 5, "--optim.lr", 5e-4],
    "5 epochs, 1e-4": [*COSINE, "--train.epochs", 5, "--optim.lr", 1e-4],
    "5 epochs, 1e-4, no MixStyle, by log loss": [
        *(*COSINE, "--train.epochs", 5, "--optim.lr", 1e-4),
        *("--augment.mixstyle_p", 0, "--train.monitor", "log_loss"),
    ],
    "1 epoch, 1e-4": ["--train.epochs", 1, "--optim.lr", 1e-4, *CONSTANT],
}


@dataclass(frozen=True)
class Found:
    """One device's test clips under one general model, one setting and one seed.

    Attributes:
        clips: training clips of the device; 0 if it is not in training.
        kept: whether the command serves the fine-tuned model.
        before: accuracy and log loss of the general model.
        tuned: those of the fine-tuned model, kept or not; of the general one for unseen devices.
    """

    model: str
    setting: str
    seed: int
    device: str
    clips: int
    kept: bool
    before: tuple[float, float]
    tuned: tuple[float, float]

    @property
    def after(self) -> tuple[float, float]:
        """Accuracy and log loss of what the command serves."""
        return self.tuned if self.kept else self.before


def score(model: Path, split: Split) -> tuple[float, float]:
    """Return accuracy and log loss of a model folder on a split."""
    with torch.no_grad():
        logits = load(model)(torch.from_numpy(split.fetch(np.arange(len(split)))))
    log_prob = log_softmax(logits.numpy())
    right = log_prob.argmax(1) == split.labels
    return float(right.mean()), float(-log_prob[np.arange(len(split)), split.labels].mean())


def measure(demo: Path, out: Path, name: str, setting: str, seed: int) -> list[Found]:
    """Fine-tune a model of the demo for every device, and return what that does to each of them."""
    run = out / f"{name}-{list(SETTINGS).index(setting)}-{seed}"
    general, dataset = demo / name / "model", demo / "dataset"
    options = [*BATCH, *SETTINGS[setting], "--seed", seed, "--data.path", dataset]
    report = cpprune("finetune", "--init", general, "--run", run, *options)["models"]
    test = shards.open_dataset(dataset).split("test")
    devices = test.column("device")
    rows = []
    for device in sorted(set(devices.tolist())):
        own = test.take(np.flatnonzero(devices == device))
        told = report.get(device)
        tuned = run / f"device-{device}/model" if told and told["after"] is not None else general
        row = Found(
            model=name,
            setting=setting,
            seed=seed,
            device=device,
            clips=told["clips"] if told else 0,
            kept=bool(told and told["kept"]),
            before=score(general, own),
            tuned=score(tuned, own),
        )
        rows.append(row)
    return rows


def kept_or_measured(demo: Path, out: Path, name: str, setting: str, seed: int) -> list[Found]:
    """Return what was measured before, or measure it and keep it."""
    file = out / f"{name}-{list(SETTINGS).index(setting)}-{seed}.json"
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept["settings"] == [str(word) for word in SETTINGS[setting]]:
            return [
                Found(**{**row, "before": tuple(row["before"]), "tuned": tuple(row["tuned"])})
                for row in kept["rows"]
            ]
    rows = measure(demo, out, name, setting, seed)
    words = [str(word) for word in SETTINGS[setting]]
    text = json.dumps({"settings": words, "rows": [asdict(row) for row in rows]}, indent=2)
    file.write_text(text + "\n")
    print(f"{name}, {setting}, seed {seed}: done", file=sys.stderr, flush=True)
    return rows


def mean(rows: list[Found], which: str, place: int) -> float:
    return float(np.mean([getattr(row, which)[place] for row in rows]))


def print_devices(rows: list[Found]) -> None:
    """Print the table of one setting: a row a device, means over models and seeds."""
    print(
        "| device | clips | accuracy before | tuned | served | log loss before | tuned | served | kept |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    seen = [row for row in rows if row.clips]
    groups = {
        **{
            device: [r for r in rows if r.device == device]
            for device in sorted({r.device for r in rows})
        },
        "seen": seen,
        "unseen": [row for row in rows if not row.clips],
    }
    for name, group in groups.items():
        cells = [
            f"{mean(group, which, place):.4f}"
            for place in (0, 1)
            for which in ("before", "tuned", "after")
        ]
        clips = f"{group[0].clips:,}" if name not in ("seen", "unseen") else ""
        kept = f"{sum(row.kept for row in group)} of {len(group)}"
        print(f"| {' | '.join([name, clips, *cells, kept])} |")


def changes(rows: list[Found], which: str, place: int) -> tuple[list[float], list[float]]:
    """Return the means over the devices in training, after and before, of each model and seed."""
    runs = sorted({(row.model, row.seed) for row in rows})
    of = [[r for r in rows if (r.model, r.seed) == run and r.clips] for run in runs]
    return [mean(part, which, place) for part in of], [mean(part, "before", place) for part in of]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="of `cpprune demo`")
    parser.add_argument("--out", type=Path, default=Path("runs/devices"))
    parser.add_argument("--models", nargs="*", default=["small", "big", "pruned"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), help="settings to run")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = [
        row
        for seed in range(arguments.seeds)
        for setting in arguments.only
        for name in arguments.models
        for row in kept_or_measured(arguments.demo, arguments.out, name, setting, seed)
    ]
    print(f"general models: {', '.join(arguments.models)}; {arguments.seeds} seeds")
    for setting in arguments.only:
        print(f"\n{setting}\n")
        print_devices([row for row in rows if row.setting == setting])
    print_changes(rows, arguments.only)


def print_changes(rows: list[Found], settings: list[str]) -> None:
    """Print by how much each setting changes the devices in training, and against the first setting."""
    lines: list[str] = []
    tests: list[Difference] = []
    for which in ("tuned", "after"):
        for setting in settings:
            by_figure = [
                changes([r for r in rows if r.setting == setting], which, i) for i in (0, 1)
            ]
            name = f"{setting}, {'served' if which == 'after' else which}"
            lines.append(name)
            tests += [paired_test(*pair) for pair in by_figure]
            first = [
                changes([r for r in rows if r.setting == settings[0]], which, i) for i in (0, 1)
            ]
            if setting != settings[0]:
                lines.append(f"{name} − {settings[0]}")
                tests += [
                    paired_test(new[0], old[0]) for new, old in zip(by_figure, first, strict=True)
                ]
    cells = []
    for number, (test, p) in enumerate(zip(tests, holm([one.p for one in tests]), strict=True)):
        scale = 1 if number % 2 else 100
        change = f"{scale * test.difference:+.3f} ± {scale * test.deviation:.3f}"
        cells.append(f"{change} | {'–' if p is None else f'{p:.3f}'}")
    print("\n| devices in training, change | accuracy, points | p | log loss | p |")
    print("|---|---|---|---|---|")
    for name, accuracy, loss in zip(lines, cells[::2], cells[1::2], strict=True):
        print(f"| {name} | {accuracy} | {loss} |")
    print("\np: two-sided paired t-test over general models and seeds, with Holm's correction")


if __name__ == "__main__":
    main()
