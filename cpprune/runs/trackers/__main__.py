"""The tracker's process: follows a run folder and logs what is written there to wandb or TensorBoard.

Started by `cpprune.runs.tracking`. It lives as long as its standard input is open, and at most SECONDS
longer.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import yaml

from cpprune.config import flatten
from cpprune.runs.trackers.follow import follow
from cpprune.runs.trackers.tensorboard import TensorBoard
from cpprune.runs.trackers.tracker import FinishedRun, Tracker
from cpprune.runs.trackers.wandb import Wandb, choose_mode
from cpprune.runs.tracking import TrackingState, read_state, write_state


def main(folder: Path, seconds: float) -> int:
    """Follow a run until it has ended, and return the exit status.

    Args:
        folder: folder of the run.
        seconds: how long this process may live after the end of the run.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the run, which then says how it ended
    # wandb interrupts its process when somebody stops the run on its page.
    signal.signal(signal.SIGINT, lambda *_: (folder / "STOP").touch())
    config = flatten(yaml.safe_load((folder / "config.yaml").read_text()))
    run_ended, ending = threading.Event(), [""]
    threading.Thread(target=_wait_for_end, args=(run_ended, ending, seconds), daemon=True).start()
    state = read_state(folder)
    if state.kind != config["track"]:
        state = TrackingState(kind=str(config["track"]))
    state.pid, state.problem = os.getpid(), None
    try:
        tracker = _open_tracker(folder, config, state, seconds)
        state.id, state.look, state.rest = tracker.id, tracker.look, tracker.rest
        write_state(folder, state)
        exit_code, finished = 1, False
        try:
            for number, record in enumerate(follow(folder / "metrics.jsonl", run_ended)):
                if number >= state.told:
                    tracker.log(record)
                    state.told = number + 1
                    write_state(folder, state)
            finished = ending[0] == "ok" and (folder / "result.json").is_file()
            if finished:
                tracker.finish(FinishedRun(folder))
            exit_code = 0 if ending[0] == "ok" else 1
        finally:  # what was logged until then should arrive
            tracker.close(exit_code)
        state.finished = finished
        write_state(folder, state)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        state.problem = f"{state.kind} failed ({reason[:200]})"
        write_state(folder, state)
        return 1
    return 0


def _open_tracker(
    folder: Path, config: dict[str, object], state: TrackingState, seconds: float
) -> Tracker:
    if state.kind == "tensorboard":
        return TensorBoard(folder, config, is_new=not state.told)
    mode, problem = choose_mode()
    if problem:
        state.problem = problem
        write_state(folder, state)
    return Wandb(folder, config, state.id, mode, seconds)


def _wait_for_end(run_ended: threading.Event, ending: list[str], seconds: float) -> None:
    ending[0] = sys.stdin.readline().strip()
    run_ended.set()
    timer = threading.Timer(
        2 * seconds, os._exit, [1]
    )  # in case nobody is left to end this process
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), float(sys.argv[2]))
    sys.stderr.flush()
    os._exit(status)  # what wandb does at exit can take for ever
