"""Proof that a change of the code changed no result: a built dataset and a dozen runs, as hashes.

    python tests/same_bytes.py record before.json     # before the change
    python tests/same_bytes.py compare before.json    # after it, on the same machine

Records the bytes of a dataset that is built, of every weight, optimizer state and plan that a run
leaves, and the figures of its metrics.jsonl and result.json that no clock decides. Exit status 1 and a
line for each thing that differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conftest import TINY
from run_folder import TIMES

REPOSITORY = Path(__file__).parents[1]
# What a machine or the day decides.
UNSTABLE = {*TIMES, "created", "started", "finished", "time", "host", "hostname"}

CUT = "--prune.ratio 0.4 --prune.start_epoch 1"
# Options by the name of the run: of `prune`, or of `train` where there is no cut.
RUNS = {
    "plain": "",
    "ema": "--train.ema_decay 0.9",
    "mixup": "--augment.mixup_alpha 0.3 --augment.mixstyle_p 0.8 --augment.roll 900",
    "masked": "--augment.freq_mask 9 --augment.time_mask 9 --augment.mixup_alpha 1",
    "clipped": "--train.clip_norm 0.5 --optim.name adamw",
    "micro": "--train.micro_batch_size 5 --optim.name sgd",
    "bf16": "--train.precision bf16",
    "pruned": CUT,
    "progressive": f"{CUT} --prune.steps 2 --prune.sparsity group_norm",
    "budget": "--prune.budget params<=2000 --prune.start_epoch 1",
    "taylor": f"{CUT} --prune.criterion taylor --train.ema_decay 0.9",
}


def run(*words: object, **environment: str) -> str:
    """Run a command and return what it printed; ends this script if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def cpprune(*words: object) -> str:
    """Run a command of cpprune."""
    return run(Path(sys.executable).with_name("cpprune"), *words)


def stable(value: Any) -> Any:
    """Return a JSON value without what a clock, a machine or the day decides."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in UNSTABLE}
    return [stable(v) for v in value] if isinstance(value, list) else value


def digest(path: Path, place: Path) -> str:
    """Return the SHA-256 of a file: of JSON, of what is stable; of tensors, without their header.

    Args:
        path: the file.
        place: the temporary folder, whose name no digest depends on.
    """
    data = tensors(path) if path.suffix == ".safetensors" else path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        text = data.decode().replace(str(place), "")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        data = json.dumps([stable(json.loads(line)) for line in lines]).encode()
    return hashlib.sha256(data).hexdigest()


def tensors(path: Path) -> bytes:
    """Return what a safetensors file holds after its header: the header has metadata of the day."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]


def of_run(folder: Path, place: Path) -> dict[str, str]:
    """Return the digests of what a run computed."""
    names = ["metrics.jsonl", "result.json"]
    files = [folder / name for name in names if (folder / name).is_file()]
    for pattern in ("model*/*.safetensors", "checkpoints/*/*.safetensors", "plans/*.json", "ids/*"):
        files += sorted(folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): digest(path, place) for path in files}


def of_dataset(folder: Path, place: Path) -> dict[str, str]:
    """Return the digests of the shards and the index of a dataset."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.suffix in (".tar", ".parquet", ".arrow")
    ]
    return {path.relative_to(folder).as_posix(): digest(path, place) for path in files}


def record(place: Path) -> dict[str, dict[str, str]]:
    """Make everything in a folder and return its digests."""
    cpprune("shards", "synth", "--out", place / "source", "--clips", 200, "--seed", 5)
    cpprune("shards", "build", "tau2022", "--source", place / "source", "--out", place / "dataset")
    data = ["--data.path", place / "dataset", "--train.epochs", 3]
    cpprune("train", *TINY, *data, "--run", place / "first")
    command = [
        *data,
        "--train.batch_size",
        16,
        "--optim.lr",
        "1e-3",
        "--optim.schedule",
        "constant",
    ]
    command += ["--init", place / "first" / "model"]

    def single(name: str) -> None:
        verb = "prune" if "--prune" in RUNS[name] else "train"
        cpprune(verb, *command, *RUNS[name].split(), "--run", place / name)

    def on_two(name: str, config: str, port: int) -> None:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 2]
        launch += ["--config_file", f"launch/accelerate/{config}.yaml", "--main_process_port", port]
        words = [*launch, "launch/prune.py", *command, *CUT.split(), "--run", place / name]
        run(*words, DS_ACCELERATOR="cpu", TORCH_EXTENSIONS_DIR=str(place / "compiled"))

    def resumed() -> None:
        words = [*command, *CUT.split(), "--train.checkpoint_steps", 1, "--run", place / "resumed"]
        cpprune("prune", *words, "--train.time_limit_minutes", "1e-9")
        cpprune("prune", *words)

    def curves() -> None:
        words = ["sensitivity", place / "first" / "model", "--data", place / "dataset", "--json"]
        (place / "sensitivity.json").write_text(cpprune(*words))

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(single, name) for name in RUNS]
        jobs += [pool.submit(on_two, "two-ranks", "cpu", 29731)]
        jobs += [pool.submit(on_two, "zero-2", "deepspeed_zero2", 29741)]
        jobs += [pool.submit(resumed), pool.submit(curves)]
        for job in jobs:
            job.result()
    found = {
        name: of_run(place / name, place)
        for name in ("first", *RUNS, "two-ranks", "zero-2", "resumed")
    }
    found["dataset"] = of_dataset(place / "dataset", place)
    found["sensitivity"] = {"output": digest(place / "sensitivity.json", place)}
    return found


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Return a line for each thing that is not the same."""
    return [
        f"{group}/{name}: {'differs' if name in one and name in other else 'is there once only'}"
        for group in sorted({*before, *after})
        for one, other in [(before.get(group, {}), after.get(group, {}))]
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder))
    count = sum(len(digests) for digests in found.values())
    if arguments.action == "record":
        arguments.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} groups, {count} digests recorded in {arguments.file}")
        return 0
    lines = differences(json.loads(arguments.file.read_text()), found)
    print("\n".join(lines) if lines else f"all {count} digests are the same")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
