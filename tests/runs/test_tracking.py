"""`track`: what wandb and TensorBoard wrote is parsed back and compared with the run's own files."""

import importlib.util
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from run_folder import epochs_of, metrics

from cpprune.config import FREE_FORM

# 32 clips in 4 batches, then 22 to validate: 5 reads an epoch.
SETTINGS = [
    *("--model.widths", "[6, 8, 10]", "--data.train_fraction", 0.25, "--train.batch_size", 8),
    *("--train.epochs", 3, "--prune.ratio", 0.4, "--prune.start_epoch", 1),
    *("--optim.schedule", "constant", "--optim.lr", 1e-2),
]


@pytest.fixture(scope="module")
def clean() -> Iterator[pytest.MonkeyPatch]:
    """No account and no settings of wandb's are found."""
    with pytest.MonkeyPatch.context() as patch:
        forget_accounts(patch)
        patch.setattr(
            "cpprune.runs.tracking.SECONDS_AT_END", 300
        )  # other tests may keep it waiting
        yield patch


def forget_accounts(patch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "MODE", "BASE_URL", "PROJECT", "RUN_GROUP", "SWEEP_ID", "RUN_ID"):
        patch.delenv(f"WANDB_{name}", raising=False)
    patch.setenv("NETRC", "/nowhere")
    patch.setenv("WANDB_CONFIG_DIR", "/nowhere")


@pytest.fixture(scope="module")
def resumed(
    clean: None, call: Any, scenes: Path, stop_at: Any, tmp_path_factory: Any
) -> Callable[[str], Path]:
    """Trains with a tracker, stopped in the third epoch and begun again; returns the folder."""

    def train(kind: str) -> Path:
        run: Path = tmp_path_factory.mktemp("group") / "run"
        command = ["prune", *SETTINGS, "--data.path", scenes, "--run", run, "--track", kind]
        with stop_at(12):
            assert call(*command) == 130
        assert call(*command) == 0
        return run

    return train


@pytest.fixture(scope="module")
def wandb_run(resumed: Callable[[str], Path]) -> Path:
    return resumed("wandb")


@pytest.fixture(scope="module")
def tensorboard_run(resumed: Callable[[str], Path]) -> Path:
    return resumed("tensorboard")


def read_datastore(path: Path) -> list[Any]:
    """Return the records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, payload, records = 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        _, size, kind = struct.unpack("<IHB", data[at : at + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:  # what is left of a block is empty
            at += left
            continue
        payload += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(payload))
            payload = b""
    return records


@pytest.fixture(scope="module")
def parts(wandb_run: Path) -> list[list[Any]]:
    """The records of the two parts that the run was made in."""
    files = sorted(wandb_run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    return [read_datastore(file) for file in files]


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        deeper = isinstance(value, dict) and prefix + key not in FREE_FORM
        found |= flat(value, f"{prefix}{key}.") if deeper else {prefix + key: value}
    return found


@pytest.mark.slow
def test_wandb_has_one_run_in_two_parts(wandb_run: Path, parts: list[list[Any]]) -> None:
    runs = [of_kind(records, "run")[0] for records in parts]
    (run_id,) = {run.run_id for run in runs}
    assert run_id == json.loads((wandb_run / "tracking.json").read_text())["id"]
    for run in runs:
        group = wandb_run.parent.name
        assert (run.project, run.run_group, run.job_type) == ("cpprune", group, "prune")
        assert run.display_name == "run"
    assert [of_kind(records, "exit")[0].exit_code for records in parts] == [1, 0]


def test_wandb_has_the_configuration(wandb_run: Path, parts: list[list[Any]]) -> None:
    expected = flat(yaml.safe_load((wandb_run / "config.yaml").read_text()))
    assert expected["optim.lr"] == 1e-2
    for records in parts:
        told: dict[str, Any] = {}
        for record in of_kind(records, "config"):
            told |= values(record.update)
        assert {key: told.get(key, "not told") for key in expected} == expected


def test_wandb_has_every_figure_once(wandb_run: Path, parts: list[list[Any]]) -> None:
    history = [values(h.item) for records in parts for h in of_kind(records, "history")]
    told = [row for row in history if "train_loss" in row]
    expected = epochs_of(wandb_run)
    assert len(told) == len(expected) == 3
    for row, line in zip(told, expected, strict=True):
        assert row["_step"] == line["step"]
        numbers = {k: v for k, v in line.items() if isinstance(v, (int, float))}
        assert {k: row[k] for k in numbers} == numbers
    assert [row["prune/parameters_before"] for row in history if "prune/part" in row] == [2650]
    axes = [m for records in parts for m in of_kind(records, "metric")]
    assert {m.step_metric for m in axes} == {"epoch"}


def tables_of(run: Path) -> dict[str, Any]:
    found = sorted(run.glob("wandb/offline-run-*/files/media/table/*.table.json"))
    return {path.name.rsplit("_", 2)[0]: json.loads(path.read_text()) for path in found}


def confusion_of(run: Path) -> np.ndarray:
    return np.array([e["val_confusion"] for e in epochs_of(run) if e["best"]][-1])


def test_the_confusion_matrix_is_of_the_figures(wandb_run: Path) -> None:
    best = [e for e in epochs_of(wandb_run) if e["best"]][-1]
    confusion = confusion_of(wandb_run)
    assert confusion.shape == (10, 10)
    assert confusion.sum() == 22
    assert np.trace(confusion) / 22 == pytest.approx(best["val_accuracy"])
    own = [row[k] / row.sum() for k, row in enumerate(confusion) if row.sum()]
    assert np.mean(own) == pytest.approx(best["val_macro_accuracy"])


def test_wandb_has_tables_and_the_model(wandb_run: Path, parts: list[list[Any]]) -> None:
    tables = tables_of(wandb_run)
    confusion = confusion_of(wandb_run)
    classes = json.loads((wandb_run / "model/model.json").read_text())["classes"]
    assert tables["val_per_class"]["columns"] == ["class", "clips", "accuracy"]
    for name, clips, accuracy in tables["val_per_class"]["data"]:
        row = confusion[classes.index(name)]
        assert (clips, accuracy) == (row.sum(), row[classes.index(name)] / row.sum())
    counted = np.zeros_like(confusion)
    for true, predicted, count in tables["val_confusion_table"]["data"]:
        counted[classes.index(true), classes.index(predicted)] = count
    assert (counted == confusion).all()
    (plan,) = (wandb_run / "plans").iterdir()
    groups = json.loads(plan.read_text())["groups"]
    assert tables["widths"]["data"] == [
        [1, group["layer"], group["width"], len(group["keep"])] for group in groups
    ]
    assert len(groups) == 9
    kinds = [artifact.type for artifact in of_kind(parts[1], "artifact")]
    assert kinds.count("model") == 1
    model = next(a for a in of_kind(parts[1], "artifact") if a.type == "model")
    names = {entry.path for entry in model.manifest.contents}
    assert names == {"model.json", "model.safetensors"}
    assert not of_kind(parts[0], "artifact")


def test_a_run_that_is_complete_is_not_told_again(
    wandb_run: Path, scenes: Path, cli: Any, clean: pytest.MonkeyPatch
) -> None:
    command = ["prune", *SETTINGS, "--data.path", scenes, "--run", wandb_run, "--track", "wandb"]
    outcome = cli(*command)
    assert outcome.status == 0
    assert "is complete already" in outcome.err
    assert f"wandb sync {wandb_run}/wandb/offline-run-*" in outcome.err
    assert len(list(wandb_run.glob("wandb/offline-run-*"))) == 2


@pytest.mark.slow
def test_tensorboard_has_every_figure_once(tensorboard_run: Path, wandb_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tensorboard_run / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    expected = epochs_of(tensorboard_run)
    for name in ("train_loss", "val_log_loss", "val_macro_accuracy", "lr", "epoch"):
        told = [(e.step, e.value) for e in events.Scalars(name)]
        assert told == [(e["step"], pytest.approx(e[name], rel=1e-6)) for e in expected]
    (image,) = events.Images("val_confusion")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    tags = events.Tags()["tensors"]
    assert {"val_per_class/text_summary", "widths/text_summary"} <= set(tags)
    # A tracker changes nothing of the run.
    assert metrics(tensorboard_run) == metrics(wandb_run)


def test_tensorboard_has_the_configuration(tensorboard_run: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import metadata

    expected = flat(yaml.safe_load((tensorboard_run / "config.yaml").read_text()))
    told: dict[str, Any] = {}
    for file in sorted((tensorboard_run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag == metadata.SESSION_START_INFO_TAG:
                    content = value.metadata.plugin_data.content
                    told = dict(metadata.parse_session_start_info_plugin_data(content).hparams)
    assert set(told) == set(expected)
    assert told["optim.lr"].number_value == 1e-2
    assert told["model.widths"].string_value == "[6, 8, 10]"


def test_without_the_package(
    refused: Any, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "cpprune.runs.tracking.find_spec", lambda name: None if name == "wandb" else real(name)
    )
    command = ["train", "--data.path", scenes, "--run", tmp_path / "run", "--track", "wandb"]
    refused(*command, names=["track=wandb", "pip install 'cpprune[wandb]'"])
    assert not (tmp_path / "run").exists()
    command[-1] = "mlflow"
    refused(*command, names=["track='mlflow'", "none, wandb, tensorboard"])
