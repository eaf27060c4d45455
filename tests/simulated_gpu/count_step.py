"""Trains on the simulated GPU, and prints what one step asks of it as one JSON object.

    python count_step.py STEP --data.path … --run … [settings of `cpprune train`]

Step number STEP of the first epoch is watched, from its call to that of the next: the loop and the
reading of batches are part of it.
"""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict

import simulated_gpu

from cpprune.audio.frontend import LogMel
from cpprune.config import build_parser, parse
from cpprune.data.prefetch import Prefetcher
from cpprune.distributed import process_group
from cpprune.training import engine, loop, step

# What belongs to which part of a step.
PARTS = {
    "augmentation": (step, "augmented"),
    "front end": (LogMel, "forward"),
    "forward": (engine.Engine, "forward"),
    "backward": (engine.Engine, "backward"),
    "update": (engine.Engine, "update"),
    "reading": (Prefetcher, "_send"),
}


def _attribute(name, owner, attribute):
    inner = getattr(owner, attribute)

    def outer(*args, **kwargs):
        with simulated_gpu.part(name):
            return inner(*args, **kwargs)

    setattr(owner, attribute, outer)


class Watched(Exception):
    """Ends the training once the step has been watched."""


def watch_step(number, arguments):
    """Train until a step is over and return a `simulated_gpu.Watched` of it."""
    for name, (owner, attribute) in PARTS.items():
        _attribute(name, owner, attribute)
    config = parse(build_parser("cpprune train", "", {}), arguments, []).config
    call, calls, found = step.TrainingStep.__call__, 0, ExitStack()
    watched = None

    def counted(self, epoch, batch, at):
        nonlocal calls, watched
        if calls == number:
            watched = found.enter_context(simulated_gpu.watch())
        elif calls == number + 1:
            found.close()
            raise Watched
        calls += 1
        with simulated_gpu.part("other"):
            return call(self, epoch, batch, at)

    step.TrainingStep.__call__ = counted
    with process_group.joined("no") as accelerator, ExitStack() as resources:
        trainer = loop.Trainer(config, frozenset(), accelerator, resources)
        try:
            trainer.train_epoch(0)
        except Watched:
            return watched
    raise SystemExit(f"the epoch has no {number + 2} steps")


if __name__ == "__main__":
    result = watch_step(int(sys.argv[1]), sys.argv[2:])
    if os.environ.get("RANK", "0") == "0":  # the process group has ended
        print(json.dumps(asdict(result) | {"kernels": result.kernels}))
