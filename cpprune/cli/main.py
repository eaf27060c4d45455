"""The command line. Each command imports what it needs when it is called."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from importlib import import_module
from typing import NoReturn

from cpprune.models.trust import trusting
from shards.cli.command import run_command
from shards.errors import InputError
from shards.launcher import of_several, process_rank

SECONDS_FOR_RANK_0 = 3.0
# Turns of a waiting OpenMP thread before it sleeps; measured by benchmarks/busy.py.
SPIN_COUNT = "1000"

# command → (module:function, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "shards": (
        "shards.cli.main:main",
        "fetch, make, check and describe datasets: download, build, …",
    ),
    "train": ("cpprune.cli.training:train", "train a network"),
    "prune": (
        "cpprune.cli.training:prune",
        "train with a pruning schedule; --dry-run: the plan",
    ),
    "evaluate": ("cpprune.cli.models:evaluate", "measure a model on a split of a dataset"),
    "summarise": (
        "cpprune.cli.summarise:summarise",
        "evaluations of several seeds → mean and deviation",
    ),
    "report": ("cpprune.cli.reports:report", "a page of all there is to know of a run"),
    "compare": ("cpprune.cli.reports:compare", "runs side by side: table, tests, plots"),
    "predict": ("cpprune.cli.predict:predict", "name the scene of audio files"),
    "info": ("cpprune.cli.models:info", "parameters, MACs, bytes, receptive field, limits"),
    "sensitivity": (
        "cpprune.cli.sensitivity:sensitivity",
        "what cutting each layer alone costs",
    ),
    "sweep": ("cpprune.cli.sweep:sweep", "many runs over a space of settings; goes on"),
    "import": ("cpprune.cli.models:import_weights", "a state dict → a model folder"),
    "doctor": (
        "cpprune.cli.doctor:doctor",
        "what this machine has, and what would fail on it",
    ),
    "demo": ("cpprune.cli.demo:demo", "the whole road on a small built-in dataset"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a negative answer, 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from cpprune import __version__

        print(f"cpprune {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]

    def run_it() -> int:
        with trusting(rest) as words:
            return command(name)(words)

    return run_command(run_it, debug="--debug" in rest)


def command(name: str) -> Callable[[list[str]], int]:
    """Return the function of a command.

    Raises:
        InputError: there is none of that name.
    """
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no command {name!r}: choose one of {', '.join(COMMANDS)}{hint}")
    module, function = COMMANDS[name][0].split(":")
    found: Callable[[list[str]], int] = getattr(import_module(module), function)
    return found


def usage() -> str:
    """Return what `cpprune --help` prints."""
    lines = [
        "usage: cpprune COMMAND [ARGUMENTS]",
        "",
        "Train, prune and ship small audio networks.",
        "",
        "commands:",
        *(f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "cpprune COMMAND --help says more about each; --debug shows the traceback of an error.",
        "--trust MODULE lets models whose network is made by that module be loaded.",
    ]
    return "\n".join(lines)


def let_waiting_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Bound how long OpenMP's threads spin while they wait, unless the user has said how they wait.

    A spinning thread keeps its CPU from the very thread that it waits for when other processes want
    the CPUs too. The runtime reads this when torch is loaded; child processes inherit it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit status."""
    let_waiting_threads_sleep(os.environ)
    status = main(argv)
    if of_several():
        if status == 2 and process_rank():
            # A launcher ends all when one has ended: not before the first has said why.
            time.sleep(SECONDS_FOR_RANK_0)
        # Gloo's threads outlive the process group; while the interpreter shuts down they abort it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
