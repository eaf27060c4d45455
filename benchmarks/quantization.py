"""Int8 after training against quantisation-aware training: accuracy, log loss, agreement with float32.

    python benchmarks/quantization.py MODEL --data DATASET [--epochs 2] [--work FOLDER]

A trained network is exported in int8 with every setting of calibration that `cpprune export` has, and
trained for a few more epochs: once in float32, as a control, and once for each choice of layers that
are quantised. Exports run in onnxruntime on the test split, model folders in torch, which rounds as in
int8 if they were trained so. `same class` is the share of clips to which a model gives the same class as
MODEL; further training changes it too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cpprune.data.compatibility import open_for_model
from cpprune.evaluation.metrics import Floats
from cpprune.evaluation.predict import evaluate_model
from cpprune.export.classifier import load_classifier
from cpprune.models.routed import RoutedModel

CPU = torch.device("cpu")
KEPT = {"first layer in float32": "first", "all layers": "none"}
CLIPS = (64, 256)
TRAIN = ["--optim.lr", "2e-4", "--optim.weight_decay", "1e-4", "--optim.schedule", "cosine"]
TRAIN += ["--optim.warmup_epochs", "0", "--train.batch_size", "64"]


def cpprune(*arguments: object) -> None:
    words = [sys.executable, "-m", "cpprune", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    model, data, work = arguments.model, arguments.data, arguments.work
    work = work or Path(tempfile.mkdtemp())
    reference: Floats | None = None

    def row(name: str, path: Path) -> None:
        nonlocal reference
        loaded = load_classifier(path)
        assert not isinstance(loaded, RoutedModel)
        report, log_prob = evaluate_model(loaded, open_for_model(data, loaded).split("test"), CPU)
        reference = log_prob if reference is None else reference
        same = (log_prob.argmax(1) == reference.argmax(1)).mean()
        figures = f"{report['macro_accuracy']:.4f} | {report['log_loss']:.4f} | {same:.1%}"
        print(f"| {name} | {figures} |", flush=True)

    def int8(folder: Path, *options: object) -> Path:
        out = work / "int8.onnx"
        cpprune("export", folder, "--precision", "int8", "--out", out, "--force", *options)
        return out

    def trained(name: str, *options: object) -> Path:
        run = work / name
        settings = [*TRAIN, "--train.epochs", arguments.epochs, "--train.precision", "no", *options]
        cpprune("train", "--init", model, "--data.path", data, "--run", run, *settings)
        return run / "model"

    print("| model | macro accuracy | log loss | same class |\n|---|---|---|---|")
    row("float32", model)
    for layers, kept in KEPT.items():
        for clips in CLIPS:
            calibration = ("--keep-float", kept, "--calibration-clips", clips, "--data", data)
            row(f"int8, {layers}, {clips} clips", int8(model, *calibration))
    more = f"{arguments.epochs} more epochs"
    control = trained("float32")
    row(f"float32, {more}", control)
    for layers, kept in KEPT.items():
        exported = int8(control, "--keep-float", kept, "--data", data)
        row(f"that in int8, {layers}, {CLIPS[-1]} clips", exported)
    for layers, kept in KEPT.items():
        names = json.dumps([] if kept == "none" else [kept])
        quantize = ("--quantize.start_epoch", 0, "--quantize.keep_float", names)
        row(f"int8, {layers}, {more} quantisation-aware", trained(kept, *quantize))


if __name__ == "__main__":
    main()
