"""Writes a submission: an installable package, predictions, accuracy and complexity."""

from __future__ import annotations

import io
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
import torch

import cpprune
import shards
from cpprune.evaluation.complexity import complexity
from cpprune.evaluation.dcase import (
    MAX_BYTES,
    MAX_MACS,
    Complexity,
    submission_names,
    write_submission,
)
from cpprune.evaluation.metrics import confusion_matrix, log_softmax
from cpprune.evaluation.predict import predict_model
from cpprune.models import artifact, routed
from cpprune.submission.runtime import DeviceModels, System
from shards.audio.clips import encode
from shards.errors import UserError
from shards.files.atomic import sync, temporary_name, write_bytes
from shards.files.documents import to_json
from shards.files.ownership import Kind, claim
from shards.sources.source import read_table
from shards.split import Split

# Devices for which the organisers measure complexity.
DEVICES = ("a", "b", "c", *(f"s{number}" for number in range(1, 11)))
SUBMISSION = Kind(name="a submission", parts=(), made=lambda folder: False, replaced=True)
LABEL = re.compile(r"[A-Za-z]\w*_[A-Za-z0-9]\w*", re.ASCII)
LIST = "evaluation_setup/fold1_test.csv"
MOST_SYSTEMS = 4

MODULE = '''"""System {number} of {label}."""

from pathlib import Path

from cpprune.submission.runtime import System

_system = System(Path(__file__).parent / "ckpts" / "{number}", half={half})
load_model = _system.load_model
load_inputs = _system.load_inputs
get_model_for_device = _system.get_model_for_device
predict = _system.predict
'''

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{package}"
version = "1.0"
description = "Submission to task 1 of the DCASE challenge"
requires-python = ">=3.11"
dependencies = {dependencies}

[tool.setuptools.packages.find]
include = ["{package}*", "cpprune*", "shards*"]

[tool.setuptools.package-data]
"*" = ["**/*"]
"""

README = """# {package}

Submission to task 1 of the DCASE challenge: low-complexity acoustic scene classification. Written by
cpprune {version}, whose sources lie beside the package.

    pip install .
    python -c "from {package}.{package}_1 import predict; print(predict(['clip.wav'], ['a']))"
"""


@dataclass(frozen=True)
class SubmittedSystem:
    """What is handed in with a system.

    Attributes:
        name: of its module.
        accuracy: on the test split, 0–1.
        macs: of the largest network.
        bytes: of the parameters of the largest network.
        predictions: clips of the evaluation set that are predicted.
    """

    name: str
    accuracy: float
    macs: int
    bytes: int
    predictions: int


def write_package(
    out: Path, label: str, models: Sequence[Path], test: Split, evaluation: Path | None, year: int
) -> list[SubmittedSystem]:
    """Write a submission, whole or not at all.

    Args:
        out: folder, which must not exist or be empty.
        label: of the submission, such as Schmid_CPJKU.
        models: model folders, or folders of routed models: one for each system, at most four.
        test: test split of the development set.
        evaluation: folder of the evaluation set, with its list and audio; None for no predictions.
        year: of the challenge, which decides how files are named in the predictions.

    Raises:
        UserError: a model or the evaluation set does not fit, or a limit of the challenge is exceeded.
    """
    if not LABEL.fullmatch(label):
        raise UserError(f"--label {label}: must be name and affiliation, such as Schmid_CPJKU")
    if len(models) > MOST_SYSTEMS:
        raise UserError(f"{len(models)} models: a submission has at most {MOST_SYSTEMS} systems")
    package = f"{label}_task1"
    files, devices = _evaluation_list(evaluation) if evaluation else ([], [])
    claim(out, SUBMISSION, "--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _new_folder(out) as new:
        resources = new / package / "resources"
        for folder in (new / package, new / package / "ckpts", resources):
            folder.mkdir()
            write_bytes(folder / "__init__.py", b"")
        _write_resources(resources, test)
        done = []
        for number, path in enumerate(models, 1):
            name = f"{package}_{number}"
            half = _needs_half(path)
            _copy_model(path, new / package / "ckpts" / str(number))
            module = MODULE.format(label=label, number=number, half=half)
            write_bytes(new / package / f"{name}.py", module.encode())
            system = System(new / package / "ckpts" / str(number), half)
            results = new / "predictions" / name
            results.mkdir(parents=True)
            done.append(_measure(system, name, results, test, len(files)))
            if evaluation:
                logits, classes = system.predict([str(evaluation / f) for f in files], devices)
                names = [f.removeprefix("audio/") if year < 2025 else f for f in files]
                log_prob = log_softmax(torch.stack(logits).numpy())
                write_submission(results / "output.csv", names, classes, log_prob)
        for library in (cpprune, shards):
            assert library.__file__ is not None
            source = Path(library.__file__).parent
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, new / source.name, ignore=ignored)
        needed = [str(text) for text in requires("cpprune") or [] if "extra ==" not in text]
        project = PROJECT.format(package=package, dependencies=to_json(sorted(needed)))
        write_bytes(new / "pyproject.toml", project.encode())
        about = README.format(package=package, version=cpprune.__version__)
        write_bytes(new / "README.md", about.encode())
    return done


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` if the block succeeds; at a failure or SIGTERM it is removed."""
    new = out.parent / temporary_name(out.name)
    new.mkdir()
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, _end) if in_main_thread else None
    try:
        yield new
        sync(new)
        new.rename(out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # until the folder is removed
    raise SystemExit(128 + number)


def _needs_half(path: Path) -> bool:
    """Return whether parameters have to be float16 to fit; refuse what does not fit at all."""
    half = False
    for device, cost in _costs(System(path, half=False).load_model()).items():
        if cost["macs"] > MAX_MACS or cost["bytes"]["fp16"] > MAX_BYTES:
            raise UserError(
                f"{path}: the network of device {device} has {cost['macs']:,} MACs and "
                f"{cost['bytes']['fp16']:,} bytes of parameters as fp16; the challenge allows "
                f"{MAX_MACS:,} and {MAX_BYTES:,}: prune it, or train a smaller one"
            )
        half |= cost["bytes"]["fp32"] > MAX_BYTES
    return half


def _costs(models: DeviceModels) -> dict[str, Complexity]:
    """Return the complexity of each device's network."""
    costs = {
        id(model): complexity(model.network, model.input_shape)
        for model in (models.routed.general, *models.routed.models.values())
    }
    return {device: costs[id(models.routed.model_for(device))] for device in DEVICES}


def _measure(
    system: System, name: str, results: Path, test: Split, predictions: int
) -> SubmittedSystem:
    """Write the accuracy on the test split, the complexity and the weights of a system."""
    models = system.load_model()
    log_prob = log_softmax(predict_model(models.routed, test, torch.device("cpu")))
    accuracy = float(np.trace(confusion_matrix(log_prob, test.labels)) / len(test))
    dtype = "fp16" if system.half else "fp32"
    per_device = {
        device: {"MACs": cost["macs"], "Params": cost["bytes"][dtype]}
        for device, cost in _costs(models).items()
    }
    most = {key: max(cost[key] for cost in per_device.values()) for key in ("MACs", "Params")}
    costs = {"per_device": per_device, **{f"max_{key}": value for key, value in most.items()}}
    weights = io.BytesIO()
    networks = models.model.half() if system.half else models.model
    torch.save(networks.state_dict(), weights)
    write_bytes(results / "model_state_dict.pt", weights.getvalue())
    for file, content in (
        ("test_accuracy.json", {"Test Accuracy": round(100 * accuracy, 2)}),
        ("complexity.json", costs),
    ):
        write_bytes(results / file, f"{to_json(content, indent=2)}\n".encode())
    return SubmittedSystem(name, accuracy, most["MACs"], most["Params"], predictions)


def _copy_model(path: Path, to: Path) -> None:
    patterns = routed.FILES if routed.is_routed(path) else artifact.FILES
    for pattern in patterns:
        for file in path.glob(pattern):
            target = to / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, file.read_bytes())


def _write_resources(folder: Path, test: Split) -> None:
    """Write the list of the test split, and a clip to measure complexity with."""
    classes = test.dataset.classes
    rows = ["filename\tscene_label"]
    names = submission_names(test)
    rows += [f"{name}\t{classes[k]}" for name, k in zip(names, test.labels, strict=True)]
    write_bytes(folder / "test.csv", "\n".join([*rows, ""]).encode())
    rate = test.dataset.sample_rate
    assert rate is not None
    tone = 1000 * np.sin(2 * np.pi * 440 / rate * np.arange(test.dataset.shape[0]))
    write_bytes(folder / "dummy.wav", encode(tone.astype(np.int16), rate, "wav"))


def _evaluation_list(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files of the evaluation set, as its list names them, and the device of each."""
    table = read_table(folder / LIST, ("filename",), delimiter="\t")
    files = [row["filename"] for _, row in table.rows]
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist, but {folder / LIST} lists it")
    return files, [row.get("device_id", "unknown") for _, row in table.rows]
