"""A run is a folder: its configuration, environment, metrics, checkpoints and models."""

from __future__ import annotations

import json
import platform
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import cpprune
from cpprune.config import RunConfig
from cpprune.distributed.collectives import fingerprint
from cpprune.evaluation.complexity import count_macs, count_parameters
from cpprune.models import artifact
from cpprune.runs import checkpoint, tracking
from cpprune.runs.divergence import has_failed
from cpprune.runs.folder import claim_run, clear_run
from cpprune.runs.identity import check_same
from shards.credentials import recorded
from shards.errors import InputError
from shards.files.atomic import replace_file, writing
from shards.files.documents import DocumentError, parse_json, to_json

PACKAGES = ("cpprune", "torch", "torchaudio", "torch-pruning", "accelerate", "numpy", "safetensors")


def provenance(
    config: RunConfig,
    own_identity: dict[str, Any],
    progress: checkpoint.Progress,
    epoch: int,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Return where a model comes from and how well it does, for model.json.

    Args:
        config: of the run.
        own_identity: see `cpprune.runs.identity`.
        progress: of the run.
        epoch: that the model is of.
        figures: on the validation split.
    """
    pruning = {**asdict(config.prune), "original_widths": progress.original_widths}
    return {
        "provenance": {
            "cpprune": cpprune.__version__,
            "run": Path(config.run).name,
            "epoch": epoch,
            "seed": config.seed,
            "init": own_identity["init"],
            "dataset": own_identity["dataset"],
            "pruning": pruning if config.prune.prunes else None,
        },
        "metrics": {"val": figures},
    }


class Journal:
    """What a run tells: metrics.jsonl, a tracker, and lines on standard error. Only rank 0 speaks.

    As a context it lets the tracker come to its end.

    Args:
        folder: of the run.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.file = folder / "metrics.jsonl"
        self.rank = rank
        self.tracking: tracking.Tracking | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tracking is not None:
            self.tracking.close(ok=kind is None)

    def track(self, kind: str) -> None:
        """Let a tracker know what metrics.jsonl holds and will hold, unless it knows all of the run."""
        if kind != "none" and not tracking.read_state(self.folder).get("finished"):
            self.file.touch()
            self.tracking = tracking.Tracking(self.folder, self.say, tracking.SECONDS_AT_END)

    def log(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        if self.rank == 0:
            with self.file.open("a") as file:
                file.write(to_json(record) + "\n")
            if self.tracking is not None:
                self.tracking.look()

    def size(self) -> int:
        """Return the length of metrics.jsonl in bytes."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def cut_back(self, size: int) -> None:
        """Take back what was logged beyond this length."""
        with self.file.open("a") as file:
            file.truncate(min(size, self.size()))

    def say(self, text: str) -> None:
        """Print a line on standard error."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)


def cut_back_ids(folder: Path, epoch: int, batch: int) -> None:
    """Take back what was recorded of this global batch and later ones; see `data.record_ids`."""
    for path in (folder / "ids").glob("rank-*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = []
        for line in lines:
            try:
                place = parse_json(line, _Place)
            except DocumentError:
                continue  # cut off in the middle
            if (place.epoch, place.batch) < (epoch, batch):
                kept.append(line)
        if kept != lines:
            replace_file(path, path.parent, b"".join(kept))


@dataclass(frozen=True)
class _Place:
    """Of which batch a line of recorded ids is."""

    epoch: int
    batch: int


def find_checkpoint(
    folder: Path, resume: str, own_identity: dict[str, Any], say: Callable[[str], None]
) -> checkpoint.Saved | None:
    """Return the last whole checkpoint, or None to begin.

    Args:
        folder: of the run.
        resume: auto, must or never.
        own_identity: see `cpprune.runs.identity`.
        say: tells of a checkpoint that is damaged and passed over, or of an older version.

    Raises:
        InputError: the folder holds a run with other settings or data, only damaged checkpoints, or
            none where one has to be.
    """
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    if resume == "never" or not found:
        if resume == "must":
            raise InputError(f"{folder}: has no checkpoint to resume; leave out --resume must")
        finished = (folder / "result.json").is_file() and not has_failed(folder)
        if resume != "never" and finished:
            raise InputError(
                f"{folder}: holds a finished run whose checkpoints are gone; choose another --run, or "
                "replace it with --resume never"
            )
        return None
    damage: list[str] = []
    for path in reversed(found):
        try:
            saved = checkpoint.read(path)
        except InputError as error:
            damage.append(str(error))
            continue
        for message in damage:
            say(f"{message}; going on from {path.name} instead")
        check_same(folder, saved.identity, own_identity, say)
        return saved
    raise InputError(
        f"{damage[0]}, and there is no whole checkpoint in {folder}: start again with --resume never"
    )


def write_start(folder: Path, config: RunConfig, fresh: bool) -> None:
    """Write config.yaml and environment.json; a fresh run first clears what an older one left."""
    with writing(folder, "--run"):
        claim_run(folder)
        if fresh:
            clear_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = json.dumps(environment(), indent=2) + "\n"
        replace_file(folder / "environment.json", folder, about.encode())
        if config.prune.prunes:
            (folder / "plans").mkdir(exist_ok=True)
        tree = config.to_dict()
        if config.init is not None:  # that model carries its network and front end with it
            del tree["model"]
            tree["features"] = {"backend": config.features.backend}
        text = yaml.safe_dump(recorded(tree), sort_keys=False)
        replace_file(folder / "config.yaml", folder, text.encode())


def write_result(folder: Path) -> dict[str, Any]:
    """Write result.json from the run's best model, and return what it holds."""
    best = artifact.load(folder / "model")
    result = {
        "run": str(folder),
        "model": str(folder / "model"),
        "parameters": count_parameters(best.network),
        "macs": count_macs(best.network, best.input_shape),
        "epoch": best.metadata["provenance"]["epoch"],
        "val": best.metadata["metrics"]["val"],
        "fingerprint": fingerprint(best.network),
    }
    text = to_json(result, indent=2) + "\n"
    replace_file(folder / "result.json", folder, text.encode())
    return result


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that this process has held so far: of the GPU's, else of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


def environment() -> dict[str, Any]:
    """Return what this run runs on, and how it was called."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": recorded(sys.argv),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "gpus": gpus,
        "threads": torch.get_num_threads(),
    }
