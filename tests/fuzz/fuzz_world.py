"""A small world in which every command has something valid to do: data, models, runs, sweeps.

    python fuzz_world.py FOLDER

All names in it are relative, so that a copy of it is as valid. Made by the commands themselves.
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = 32_000
TINY = ("--model.widths=[6,8,10]", "--train.batch_size=4", "--data.path=data", "--train.epochs=2")
TINY += ("--optim.schedule=constant",)


def call(*arguments: str) -> str:
    """Run a command that has to succeed; return its standard output."""
    from cpprune.cli.main import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(list(arguments))
    if status != 0:
        raise SystemExit(f"cpprune {' '.join(arguments)}: status {status}")
    return out.getvalue()


def build(folder: Path) -> None:
    """Make the world in an empty folder, which becomes the current one."""
    os.chdir(folder)
    make_sources()
    call("shards", "build", "folder", "--source", "source", "--out", "data", "--workers", "1")
    mnist = ("--source", "mnist", "--out", "digits", "--workers", "1")
    call("shards", "build", "mnist", *mnist)
    make_runs()
    make_sweep()
    for path in Path().rglob("*"):
        if path.is_file() and path.name == "report.html":
            path.unlink()  # large, and nothing reads it


def make_sources() -> None:
    """Write recordings of every kind, a table, digits and TAU's layout."""
    import soundfile

    from shards.sources.synthetic import synthesise

    rng = np.random.default_rng(0)

    def write(name: str, seconds: float = 1.0, **how: str) -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, round(seconds * RATE)), RATE, **how)

    for split, files in (("train", 4), ("val", 2), ("test", 2)):
        for name in ("bus", "metro"):
            for number in range(files):
                write(f"source/{split}/{name}/{number}.wav", subtype="PCM_16")
    for ending in ("flac", "ogg", "mp3", "aiff", "w64"):
        write(f"sounds/one.{ending}", 1.5)
    write("sounds/one.wav", 2.2, subtype="FLOAT")
    rows = ["filename\tlabel\tsplit\tlocation\tdevice"]
    for number in range(8):
        write(f"tabled/{number}.wav", subtype="PCM_16")
        split = ("train", "train", "val", "test")[number // 2]
        rows.append(f"{number}.wav\t{'ab'[number % 2]}\t{split}\tplace{number}\tphone")
    Path("tabled/table.tsv").write_text("\n".join(rows) + "\n")
    Path("mnist").mkdir()
    for part, count in (("train", 24), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            data = gzip.compress(head + array.tobytes())
            Path(f"mnist/{part}-{kind}-ubyte.gz").write_bytes(data)
    synthesise(Path("tau"), 200, seed=5, workers=1)
    keep_few(Path("tau"))


def keep_few(tau: Path) -> None:
    """Leave every tenth recording of a folder in TAU's layout."""
    lists = [tau / "meta.csv", *tau.glob("evaluation_setup/*.csv")]
    rows = {path: path.read_text().splitlines() for path in lists}
    kept = {row.split("\t")[0] for row in rows[tau / "meta.csv"][1::10]}
    for path, lines in rows.items():
        few = [lines[0], *(line for line in lines[1:] if line.split("\t")[0] in kept)]
        path.write_text("\n".join(few) + "\n")
    for path in tau.glob("audio/*"):
        if f"audio/{path.name}" not in kept:
            path.unlink()


def make_runs() -> None:
    """Train twice, stop one run half-way, and write what is made from models."""
    import safetensors.torch
    import torch

    call("train", *TINY, "--run", "runs/a")
    call("train", *TINY, "--run", "runs/b", "--seed", "1")
    shutil.copytree("runs/a", "runs/stopped")
    last = max(Path("runs/stopped/checkpoints").iterdir())
    shutil.rmtree(last)
    Path("runs/stopped/result.json").unlink()
    plan = ("--prune.ratio", "0.5", "--prune.save_plan", "plan.json")
    call("prune", "--init", "runs/a/model", *plan, "--dry-run")
    few = ("--ratios", "0.5", "--clips", "2", "--out", "sensitivity")
    call("sensitivity", "runs/a/model", "--data", "data", *few)
    Path("evaluation").mkdir()
    for name in "ab":
        found = call("evaluate", f"runs/{name}/model", "--data", "data", "--json")
        Path(f"evaluation/{name}.json").write_text(found)
    call("export", "runs/a/model", "--out", "model.onnx")
    call("logits", "runs/a/model", "--data", "data", "--out", "logits.npz")
    torch.save(safetensors.torch.load_file("runs/a/model/model.safetensors"), "state.pth")
    tree = yaml.safe_load((REPOSITORY / "configs/big.yaml").read_text())
    tree["model"] = {"widths": [6, 8, 10]}
    tree["data"] = {"path": "data"}
    tree["train"] = {"epochs": 1, "batch_size": 8}
    tree["optim"] = {"schedule": "constant", "lr": 0.001}
    Path("config.yaml").write_text(yaml.safe_dump(tree))


def make_sweep() -> None:
    """Run two of four trials of a sweep that takes no time."""
    shutil.copy(REPOSITORY / "tests/sweeps/quick_run.py", "quick_run.py")
    sweep = {
        "method": "grid",
        "metric": {"name": "val_log_loss", "goal": "minimize"},
        "parameters": {"x": {"values": [1, 2, 3, 4]}, "pause": {"value": 0}},
        "program": "quick_run.py",
        "command": ["${interpreter}", "${program}", "${args}"],
        "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    call("sweep", "sweep.yaml", "--out", "swept", "--trials", "2")
    for name in ("random", "bayes"):
        ranges = {"x": {"min": 0.5, "max": 4.0, "distribution": "uniform"}}
        tree = {**sweep, "method": name, "parameters": ranges, "run_cap": 2}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    build(target)
    print(json.dumps({"made": str(target)}))
