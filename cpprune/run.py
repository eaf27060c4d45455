"""A run is a folder: its configuration, environment, metrics, checkpoints and models."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from cpprune import artifact, checkpoint
from cpprune.artifact import Model
from cpprune.audio.mel import LogMel, spec_to_json
from cpprune.complexity import count_macs, count_parameters
from cpprune.config import FILE_KEYS, FREE_KEYS, RunConfig, flatten
from cpprune.distributed import fingerprint
from shards.errors import InputError
from shards.reader import Dataset

PACKAGES = ("cpprune", "torch", "torchaudio", "torch-pruning", "accelerate", "numpy", "safetensors")


def identity(config: RunConfig, dataset: Dataset, model: Model) -> dict[str, Any]:
    """Return what a resumed run must share with the one that wrote its checkpoint.

    Raises:
        InputError: a file that the settings name cannot be read.
    """
    settings = {k: v for k, v in flatten(config.to_dict()).items() if k not in FREE_KEYS}
    # What files hold is pinned by its hash, wherever they lie.
    for key in FILE_KEYS:
        settings[key] = settings[key] and f"sha256 {_sha256(Path(settings[key]))}"
    init = settings.pop("init")
    spec = model.features.spec if isinstance(model.features, LogMel) else None
    return {
        "settings": settings,
        "init": init and artifact.read_description(Path(init))["weights"]["sha256"],
        "dataset": dataset.fingerprint,
        "features": spec_to_json(spec),
    }


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def find_checkpoint(folder: Path, resume: str, own_identity: dict[str, Any]) -> Path | None:
    """Return the checkpoint to go on from, or None to begin.

    Raises:
        InputError: the folder holds a run with other settings or data, or none where one has to be.
    """
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    if resume == "never" or not found:
        if resume == "must":
            raise InputError(f"{folder}: has no checkpoint to resume; leave out --resume must")
        if resume != "never" and (folder / "result.json").is_file():
            raise InputError(
                f"{folder}: holds a finished run whose checkpoints are gone; choose another --run, or "
                "replace it with --resume never"
            )
        return None
    saved = checkpoint.read_state(found[-1]).identity
    if saved != json.loads(json.dumps(own_identity)):
        raise InputError(
            f"{folder}: holds a run with other settings ({_differences(saved, own_identity)}); give "
            "the same to resume it, choose another --run, or replace it with --resume never"
        )
    return found[-1]


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    before, after = saved["settings"], json.loads(json.dumps(now["settings"]))
    changed = [
        f"{key}: {before.get(key)} then, {after.get(key)} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if saved["dataset"] != now["dataset"]:
        changed.append("data.path: the dataset has other contents")
    if saved["init"] != now["init"]:
        changed.append("init: another model")
    if not changed:
        changed.append("the front end of the model")
    return "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")


def write_start(folder: Path, config: RunConfig, fresh: bool) -> None:
    """Write config.yaml and environment.json; a fresh run first clears what an older one left."""
    try:
        if fresh and folder.is_dir():
            for name in ("checkpoints", "model", "model_last", "plans", "ids"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("metrics.jsonl", "result.json"):
                (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another --run"
        ) from None


def write_result(folder: Path) -> dict[str, Any]:
    """Write result.json from the run's best model, and return what it holds."""
    best = artifact.load(folder / "model")
    result = {
        "run": str(folder),
        "model": str(folder / "model"),
        "parameters": count_parameters(best.network),
        "macs": count_macs(best.network, best.input_shape),
        "epoch": best.about["provenance"]["epoch"],
        "val": best.about["metrics"]["val"],
        "fingerprint": fingerprint(best.network),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


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
        "command": sys.argv,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "gpus": gpus,
        "threads": torch.get_num_threads(),
    }
