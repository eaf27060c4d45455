"""The entry point: looks up a command, which imports what it needs, and runs it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from importlib import import_module
from typing import NoReturn

from cpprune.models.trust import trusting
from shards.cli.command import run_command
from shards.errors import UserError
from shards.launcher import of_several, process_rank
from shards.suggest import did_you_mean

SECONDS_FOR_RANK_0 = 3.0
# Iterations of a waiting OpenMP thread before it sleeps; measured by benchmarks/busy.py.
SPIN_COUNT = "1000"

# command → (module:function, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "shards": ("shards.cli.main:main", "build, check, describe and download datasets"),
    "train": ("cpprune.cli.train:train", "train a network"),
    "prune": ("cpprune.cli.prune:prune", "prune and fine-tune; --dry-run prints the plan"),
    "finetune": (
        "cpprune.cli.finetune:finetune",
        "fine-tune a model for each device, site or subject",
    ),
    "evaluate": ("cpprune.cli.evaluate:evaluate", "accuracy of a model on a split of a dataset"),
    "ensemble": ("cpprune.cli.ensemble:ensemble", "accuracy of the average of several models"),
    "soup": ("cpprune.cli.soup:soup", "average the weights of several models into one"),
    "logits": ("cpprune.cli.logits:logits", "write models' logits, for a student to learn from"),
    "summarise": ("cpprune.cli.summarise:summarise", "mean and deviation over several evaluations"),
    "report": ("cpprune.cli.report:report", "HTML report of a run"),
    "compare": ("cpprune.cli.compare:compare", "runs side by side: table, tests, plots"),
    "predict": ("cpprune.cli.predict:predict", "name the scene of audio files"),
    "listen": ("cpprune.cli.listen:listen", "name the scene of continuous audio, live"),
    "export": (
        "cpprune.cli.export:export",
        "write a model as ONNX, C, TensorFlow Lite or ExecuTorch",
    ),
    "submit": ("cpprune.cli.submit:submit", "package for the DCASE challenge"),
    "info": ("cpprune.cli.info:info", "parameters, MACs, bytes and receptive field of a model"),
    "sensitivity": (
        "cpprune.cli.sensitivity:sensitivity",
        "accuracy lost when each layer alone is pruned",
    ),
    "sweep": ("cpprune.cli.sweep:sweep", "resumable hyper-parameter sweep"),
    "import": (
        "cpprune.cli.import_weights:import_weights",
        "convert a state dict into a model folder",
    ),
    "doctor": (
        "cpprune.cli.doctor:doctor",
        "check Python, packages, memory, GPUs, launcher and SLURM",
    ),
    "demo": ("cpprune.cli.demo:demo", "build a small dataset; train, prune and evaluate on it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 for a negative answer, 2 for a user's mistake."""
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
        UserError: there is none of that name.
    """
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"no command {name!r}: choose one of {', '.join(COMMANDS)}{hint}")
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
        "cpprune COMMAND --help describes its arguments; --debug shows the traceback of an error.",
        "--trust MODULE allows models whose network is built by that module to be loaded.",
    ]
    return "\n".join(lines)


def let_waiting_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Bound how long OpenMP's threads spin while they wait, unless the user has set that.

    On a busy machine, a spinning thread keeps its CPU from the very thread that it waits for. The
    runtime reads this when torch is loaded; child processes inherit it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit status."""
    let_waiting_threads_sleep(os.environ)
    status = main(argv)
    if of_several():
        if status == 2 and process_rank():
            # A launcher kills all ranks when one ends: let rank 0 print the error first.
            time.sleep(SECONDS_FOR_RANK_0)
        # Gloo's threads outlive the process group and would abort the interpreter's shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
