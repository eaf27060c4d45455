"""Free memory, as limited by the machine, its control groups and SLURM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/")


def available_memory(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many bytes can be allocated before the machine, a control group or SLURM refuses.

    Caches of files count as free. SLURM's limit counts as if none of it were used yet.

    Args:
        root: root folder of the file system that holds `proc` and `sys`.
        environment: environment with SLURM's variables about the job's memory.
    """
    meminfo = _numbers(root / "proc/meminfo")
    free = [meminfo["MemAvailable:"] * 1024]
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            free += _free_in_groups(root / "sys/fs/cgroup" / controllers, path.strip("/"))

    def slurm(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0

    # In MiB; 0 is all of the machine, and so is anything that SLURM would not write.
    per_cpu = slurm("SLURM_MEM_PER_CPU") * slurm("SLURM_CPUS_ON_NODE")
    limit = slurm("SLURM_MEM_PER_NODE") or per_cpu
    return min([*free, limit << 20] if limit else free)


def _free_in_groups(mount: Path, path: str) -> list[int]:
    """Return the bytes that are free in a control group and each one above it, of version 1 or 2."""
    free = []
    for group in [mount / path, *(mount / path).parents]:
        if mount not in [group, *group.parents]:
            break
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            text = (group / limit).read_text().strip() if (group / limit).is_file() else "max"
            if text != "max":
                used = int((group / usage).read_text()) - _file_cache(group / "memory.stat")
                free.append(max(0, int(text) - used))
    return free


def _file_cache(stat: Path) -> int:
    found = _numbers(stat)
    return sum(
        found.get(f"total_{name}", found.get(name, 0)) for name in ("inactive_file", "active_file")
    )


def _numbers(path: Path) -> dict[str, int]:
    """Return {name: number} for the lines that begin with both."""
    fields = [line.split() for line in path.read_text().splitlines()]
    return {name: int(number) for name, number, *_ in fields if number.isdigit()}
