"""The tracker's own process: follows a run's folder and tells wandb or TensorBoard what is in it.

Started by `cpprune.runs.tracking` as `python -m cpprune.runs.trackers FOLDER SECONDS`. It lives as
long as its standard input is open, and no more than `SECONDS` longer.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np
import yaml
from accelerate import PartialState
from accelerate.tracking import TensorBoardTracker, WandBTracker

from cpprune.config import flatten
from cpprune.evaluation.metrics import Ints
from cpprune.evaluation.plots import confusion_figure
from cpprune.runs.tracking import STATE, read_state
from shards.files.atomic import replace_file
from shards.files.documents import to_json

SECONDS_BETWEEN_LOOKS = 0.5
# The server has to answer at all within this, else the run is kept offline.
SECONDS_TO_REACH = 5.0


class Tracker(Protocol):
    """What a tracker can be told.

    Attributes:
        id: of the run, the same for all its parts.
        look: what a person does to see it.
        rest: what sends what the tracker was told, but did not send.
    """

    id: str
    look: str
    rest: str

    def tell(self, record: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl."""

    def finish(self, folder: Path) -> None:
        """Take what there is once the run is over."""

    def close(self, exit_code: int) -> None:
        """Take no more."""


class State:
    """How far the tracker has come: tracking.json, which `tracking.read_state` reads."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path = folder / STATE
        found = read_state(folder)
        fresh: dict[str, Any] = {"kind": kind, "told": 0, "id": None}
        self.content = found if found.get("kind") == kind else fresh
        self.content |= {"pid": os.getpid(), "problem": None}

    def note(self, **changes: Any) -> None:
        """Change what it says, at once and on disk."""
        self.content.update(changes)
        replace_file(self.path, self.path.parent, (to_json(self.content) + "\n").encode())


def main(folder: Path, seconds: float) -> int:
    """Follow a run until it is over.

    Args:
        folder: of the run.
        seconds: from the end of the run to that of this process, at most.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # is for the run, which then says how it ended
    # How wandb stops a run, when somebody asks for it on its page.
    signal.signal(signal.SIGINT, lambda *_: (folder / "STOP").touch())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    over, ending = threading.Event(), [""]
    threading.Thread(target=_wait_for_end, args=(over, ending, seconds), daemon=True).start()
    state = State(folder, config["track"])
    try:
        PartialState(cpu=True)  # the trackers' own logger asks for it
        tracker = TRACKERS[config["track"]](folder, config, state, seconds)
        state.note(id=tracker.id, look=tracker.look, rest=tracker.rest)
        exit_code, finished = 1, False
        try:
            _tell_all(tracker, state, folder, over)
            finished = ending[0] == "ok" and (folder / "result.json").is_file()
            if finished:
                tracker.finish(folder)
            exit_code = 0 if ending[0] == "ok" else 1
        finally:  # what was told until then should arrive
            tracker.close(exit_code)
        state.note(finished=finished)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        state.note(problem=f"{config['track']} failed ({reason[:200]})")
        return 1
    return 0


def _wait_for_end(over: threading.Event, ending: list[str], seconds: float) -> None:
    ending[0] = sys.stdin.readline().strip()
    over.set()
    timer = threading.Timer(2 * seconds, os._exit, [1])  # when there is nobody left to end it
    timer.daemon = True
    timer.start()


def _tell_all(tracker: Tracker, state: State, folder: Path, over: threading.Event) -> None:
    for number, record in enumerate(follow(folder / "metrics.jsonl", over)):
        if number < state.content["told"]:
            continue
        tracker.tell(record)
        state.note(told=number + 1)


def follow(path: Path, over: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the lines of a JSON-lines file as they come, until `over` is set and all are read."""
    with path.open() as file:
        rest = ""
        while True:
            last = over.is_set()
            *lines, rest = (rest + file.read()).split("\n")
            yield from map(json.loads, lines)
            if last:
                return
            over.wait(SECONDS_BETWEEN_LOOKS)


def measures(record: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl; those of an event have its name before them.

    So an event takes no number away from the epoch that ended at the same step.
    """
    prefix = f"{record['event']}/" if "event" in record else ""
    return {
        f"{prefix}{name}": value
        for name, value in record.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def width_rows(folder: Path) -> list[list[Any]]:
    """Return [epoch, layer, width before, width after] of every layer that a plan of the run cut."""
    return [
        [int(path.stem.removeprefix("epoch-")), entry["layer"], entry["width"], len(entry["keep"])]
        for path in sorted((folder / "plans").glob("epoch-*.json"))
        for entry in json.loads(path.read_text())["groups"]
    ]


def best_confusion(folder: Path) -> tuple[list[str], Ints]:
    """Return the classes, and the confusion matrix [K, K] of the best model on validation."""
    classes = json.loads((folder / "model/model.json").read_text())["classes"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if "val_confusion" in record]
    return classes, np.array(found[-1]["val_confusion"])


def class_rows(classes: list[str], confusion_KK: Ints) -> list[list[Any]]:
    """Return [class, clips, accuracy] of every class that has clips."""
    clips = confusion_KK.sum(1)
    return [
        [name, int(clips[k]), float(confusion_KK[k, k] / clips[k])]
        for k, name in enumerate(classes)
        if clips[k]
    ]


def job_type(config: dict[str, Any]) -> str:
    """Return train, prune or fine-tune."""
    prune = config["prune"]
    if any(prune[way] for way in ("ratio", "budget", "plan")):
        return "prune"
    return "fine-tune" if config["init"] else "train"


class Wandb:
    """A run of wandb; without a key or a network, one in the run's folder for `wandb sync`."""

    def __init__(self, folder: Path, config: dict[str, Any], state: State, seconds: float) -> None:
        import wandb

        mode, problem = _wandb_mode()
        if problem:
            state.note(problem=problem)
        # Under a sweep's agent the environment says which run this is.
        swept = "WANDB_SWEEP_ID" in os.environ
        environment = os.environ
        self.tracker = WandBTracker(
            environment.get("WANDB_PROJECT", "cpprune"),
            id=None if swept else state.content["id"] or secrets.token_hex(4),
            resume="allow",
            mode=mode,
            dir=str(folder),
            name=environment.get("WANDB_NAME", folder.name),
            group=environment.get("WANDB_RUN_GROUP", folder.resolve().parent.name),
            job_type=environment.get("WANDB_JOB_TYPE", job_type(config)),
            settings=wandb.Settings(
                console="off",
                x_stats_pid=os.getppid(),
                finish_timeout=seconds / 2,
                finish_timeout_raises=True,
            ),
        )
        self.tracker.start()
        run = self.tracker.tracker
        self.id = run.id
        self.look = (
            f"wandb sync {quote(str(folder))}/wandb/offline-run-*" if run.offline else run.url
        )
        self.rest = f"wandb sync {quote(run.settings.sync_dir)}"
        self.tracker.store_init_configuration(flatten(config))
        run.define_metric("*", step_metric="epoch")

    def tell(self, record: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl."""
        self.tracker.log(measures(record), step=record.get("step"))

    def finish(self, folder: Path) -> None:
        """Take tables, the confusion matrix and the model."""
        import wandb

        run = self.tracker.tracker
        classes, confusion = best_confusion(folder)
        pairs = np.indices(confusion.shape).reshape(2, -1)
        true, predicted = np.repeat(pairs, confusion.ravel(), axis=1).tolist()
        rows = class_rows(classes, confusion)
        self.tracker.log_table("val_per_class", ["class", "clips", "accuracy"], rows)
        plot = wandb.plot.confusion_matrix(y_true=true, preds=predicted, class_names=classes)
        self.tracker.log({"val_confusion": plot})
        if widths := width_rows(folder):
            self.tracker.log_table("widths", ["epoch", "layer", "before", "after"], widths)
        result = json.loads((folder / "result.json").read_text())
        run.summary.update({f"best/{name}": value for name, value in result["val"].items()})
        model = wandb.Artifact(f"model-{run.id}", type="model", metadata=result)
        model.add_dir(str(folder / "model"))
        run.log_artifact(model)

    def close(self, exit_code: int) -> None:
        """Take no more."""
        self.tracker.tracker.finish(exit_code=exit_code)


def _wandb_mode() -> tuple[str, str]:
    """Return wandb's mode, and what is wrong if it is not the one that was wanted."""
    import requests
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return mode, ""
    try:
        if not wandb.login(verify=False):
            return "offline", ""
    except wandb.errors.UsageError as error:
        wanted = "WANDB_MODE" in os.environ
        return "offline", f"wandb is offline ({error})" if wanted else ""
    url = wandb.setup().settings.base_url
    try:
        requests.head(url, timeout=SECONDS_TO_REACH)
    except requests.RequestException:
        return "offline", f"{url} does not answer, so wandb is offline"
    return "online", ""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, config: dict[str, Any], state: State, seconds: float) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.tracker = TensorBoardTracker("", folder / "tensorboard")
        self.tracker.start()
        self.id = folder.name
        self.look = f"tensorboard --logdir {quote(str(folder / 'tensorboard'))}"
        self.rest = "begin the same command again"
        if not state.content["told"]:
            kinds = (bool, int, float, str)
            values = {
                name: value if isinstance(value, kinds) else str(value)
                for name, value in flatten(config).items()
            }
            # What `add_hparams` writes, without the second run that it makes for it.
            shown = dict.fromkeys(("val_macro_accuracy", "val_log_loss", "parameters"))
            for summary in hparams(values, shown):  # type: ignore[no-untyped-call]
                self.tracker.tracker.file_writer.add_summary(summary)

    def tell(self, record: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl."""
        self.tracker.log(measures(record), step=record.get("step"))

    def finish(self, folder: Path) -> None:
        """Take tables and the confusion matrix."""
        classes, confusion = best_confusion(folder)
        writer = self.tracker.tracker
        writer.add_figure("val_confusion", confusion_figure(classes, confusion))
        rows = [["class", "clips", "accuracy"], *class_rows(classes, confusion)]
        writer.add_text("val_per_class", _markdown(rows))
        if widths := width_rows(folder):
            writer.add_text("widths", _markdown([["epoch", "layer", "before", "after"], *widths]))

    def close(self, exit_code: int) -> None:
        """Take no more."""
        self.tracker.finish()


def _markdown(rows: list[list[Any]]) -> str:
    head, *body = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "tensorboard": TensorBoard}

if __name__ == "__main__":
    status = main(Path(sys.argv[1]), float(sys.argv[2]))
    sys.stderr.flush()
    os._exit(status)  # what wandb does at an exit can take for ever
