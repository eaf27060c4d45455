"""Rank and world size of this process, from the environment variables of its launcher.

No other module reads these variables. A world size above 1 without the rest is refused: it stands for
processes that would each train alone over the same files. Leftovers of an earlier launcher are ignored,
with a note.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from shards.errors import UserError

# World size, rank and local rank, as `torchrun` and `accelerate launch` set them …
TORCH = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
# … and as Open MPI, MPICH (also Intel MPI) and MVAPICH set them.
MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)
MEETING = ("MASTER_ADDR", "MASTER_PORT")
NAMES = tuple(name for family in (TORCH, *MPI) for name in family) + MEETING
# Prefixes of all variables that a launcher sets.
PREFIXES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI_", "MPI_LOCAL", "MV2_")
REMEDY = "start all processes with `accelerate launch` or `torchrun`"


@dataclass(frozen=True)
class Launch:
    """Position of this process among those that were launched together; by default it is alone.

    Attributes:
        rank: rank among all processes.
        local_rank: rank among the processes of this node.
        world_size: number of processes.
        variables: environment variables that torch needs; empty for a single process.
        note: message about variables that are ignored; empty if there are none.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables.

    Raises:
        UserError: they describe several processes but are incomplete, or are not numbers.
    """
    given = {name: environment[name].strip() for name in NAMES if environment.get(name, "").strip()}
    whole = all(name in given for name in (*TORCH, *MEETING))
    for family in (TORCH,) if whole else (TORCH, *MPI):
        size = _number(given, family[0], 1)
        if size < 1:
            raise UserError(f"{family[0]}=0 in the environment: must be at least 1, or not set")
        if whole or size > 1:
            return _several(given, family, size)
        for name in family[1:]:
            _number(given, name, 0)
    return Launch(note=_note(given, environment))


def process_rank() -> int:
    """Return the rank of this process; 0 if the environment is inconsistent."""
    return _launch_or_alone().rank


def of_several() -> bool:
    """Return whether this is one of several processes; False if the environment is inconsistent."""
    return _launch_or_alone().world_size > 1


def _launch_or_alone() -> Launch:
    try:
        return read_launch()
    except UserError:
        return Launch()


@contextmanager
def only(launch: Launch) -> Iterator[None]:
    """Set the launcher's variables to exactly those of `launch` while the block runs."""
    before = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    os.environ.update(launch.variables)
    try:
        yield
    finally:
        for name in launch.variables:
            os.environ.pop(name, None)
        os.environ.update(before)


def _several(given: Mapping[str, str], family: tuple[str, ...], size: int) -> Launch:
    missing = [name for name in (*family[1:], *MEETING) if name not in given]
    if missing:
        raise UserError(
            f"{family[0]} is {size}, but {', '.join(missing)} is not set: {REMEDY}, or unset "
            f"{family[0]} for a single one"
        )
    rank, local_rank = (_number(given, name, 0) for name in family[1:])
    if rank >= size or local_rank >= size:
        name = family[1] if rank >= size else family[2]
        raise UserError(
            f"{name}={given[name]} does not fit {family[0]}={size}: it must be below it"
        )
    port = _number(given, "MASTER_PORT", 0)
    if not 0 < port < 1 << 16:
        raise UserError(f"MASTER_PORT={port} in the environment: must be between 1 and 65535")
    values = (size, rank, local_rank, given["MASTER_ADDR"], port)
    variables = dict(zip((*TORCH, *MEETING), map(str, values), strict=True))
    return Launch(rank, local_rank, size, variables)


def _note(given: Mapping[str, str], environment: Mapping[str, str]) -> str:
    left = [name for name in (*TORCH, *MEETING) if name in given]
    for family in MPI:
        there = [name for name in family if name in given]
        # `mpirun -n 1` sets all of them, correctly.
        if there and not (family[0] in given and all(given[n] == "0" for n in there[1:])):
            left += there
    if left:
        listed = ", ".join(f"{name}={given[name]}" for name in left)
        return (
            f"set aside what is left of a launcher ({listed}): this is a single process; unset it, or "
            f"{REMEDY}"
        )
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" and "SLURM_PROCID" in environment:
        return (
            f"srun has started {tasks} tasks (SLURM_STEP_NUM_TASKS), and each runs on its own; to train "
            f"together, {REMEDY}, as slurm/submit.sh does"
        )
    return ""


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    # str.isdigit() is true for digits such as ², which int() refuses.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{name}={text!r} in the environment: must be a number, or not set")
    return int(text)
