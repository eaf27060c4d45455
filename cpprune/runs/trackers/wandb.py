"""Weights & Biases."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict
from pathlib import Path
from shlex import quote

import numpy as np

from cpprune.deps.wandb import run_settings, server_url, sync_folder
from cpprune.runs.trackers.tracker import FinishedRun, scalars

# A server that does not answer at all within this time makes the run offline.
SECONDS_TO_REACH = 5.0


class Wandb:
    """A run of wandb; see `tracker.Tracker`.

    Args:
        folder: folder of the run.
        config: its configuration, by dotted key.
        run_id: id that an earlier part of the run was given; None for a new one.
        mode: of wandb: online, offline, ….
        seconds: how long sending may take after the end of the run.
    """

    def __init__(
        self, folder: Path, config: dict[str, object], run_id: str | None, mode: str, seconds: float
    ) -> None:
        import wandb

        # Under a sweep's agent, the environment says which run this is.
        in_sweep = "WANDB_SWEEP_ID" in os.environ
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cpprune"),
            id=None if in_sweep else run_id or secrets.token_hex(4),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]  # wandb checks WANDB_MODE itself
            dir=str(folder),
            name=os.environ.get("WANDB_NAME", folder.name),
            group=os.environ.get("WANDB_RUN_GROUP", folder.resolve().parent.name),
            job_type=os.environ.get("WANDB_JOB_TYPE", job_type(config)),
            settings=run_settings(os.getppid(), seconds / 2),
        )
        self.id = self.run.id
        offline = f"wandb sync {quote(str(folder))}/wandb/offline-run-*"
        self.look = offline if self.run.offline else self.run.url
        self.rest = f"wandb sync {quote(sync_folder(self.run))}"
        self.run.config.update(config, allow_val_change=True)
        self.run.define_metric("*", step_metric="epoch")

    def log(self, record: dict[str, object]) -> None:
        """Log a line of metrics.jsonl."""
        self.run.log(scalars(record), step=record.get("step"))

    def finish(self, run: FinishedRun) -> None:
        """Log tables, the confusion matrix and the model."""
        import wandb

        def log_table(name: str, columns: list[str], rows: list[list[object]]) -> None:
            self.run.log({name: wandb.Table(columns=columns, data=rows)})

        table = run.per_class()
        log_table("val_per_class", table.columns, table.rows)
        pairs = np.indices(run.confusion_KK.shape).reshape(2, -1)
        true, predicted = np.repeat(pairs, run.confusion_KK.ravel(), axis=1).tolist()
        plot = wandb.plot.confusion_matrix(y_true=true, preds=predicted, class_names=run.classes)
        self.run.log({"val_confusion": plot})
        if (widths := run.widths()).rows:
            log_table("widths", widths.columns, widths.rows)
        best = asdict(run.result.val).items()
        self.run.summary.update({f"best/{name}": value for name, value in best})
        model = wandb.Artifact(f"model-{self.id}", type="model", metadata=asdict(run.result))
        model.add_dir(str(run.folder / "model"))
        self.run.log_artifact(model)

    def close(self, exit_code: int) -> None:
        """Send what is left."""
        self.run.finish(exit_code=exit_code)


def choose_mode() -> tuple[str, str]:
    """Return wandb's mode, and a line that says why if it is not the one that was asked for.

    Offline without an account, or if the server does not answer.
    """
    import requests
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return mode, ""
    try:
        if not wandb.login(verify=False):
            return "offline", ""
    except wandb.errors.UsageError as error:
        asked_for = "WANDB_MODE" in os.environ
        return "offline", f"wandb is offline ({error})" if asked_for else ""
    url = server_url()
    try:
        requests.head(url, timeout=SECONDS_TO_REACH)
    except requests.RequestException:
        return "offline", f"{url} does not answer, so wandb is offline"
    return "online", ""


def job_type(config: dict[str, object]) -> str:
    """Return train, prune or fine-tune."""
    if any(config[f"prune.{way}"] for way in ("ratio", "budget", "plan")):
        return "prune"
    return "fine-tune" if config["init"] else "train"
