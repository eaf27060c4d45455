"""Bad inputs for every command.

python tests/fuzz/run.py --count 1000          # try them, list what failed
python tests/fuzz/run.py --only 123            # one again, with all that it printed
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz_lines import Line

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others start threads
HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY))


BATCH = 8  # inputs that one process tries, one after the other


def load_light() -> None:
    """Import what the commands without torch import, so that a forked process has it."""
    import pyarrow.parquet
    import soundfile
    import soxr
    import yaml

    import cpprune.cli.main
    import cpprune.cli.summarise
    import shards

    assert all((pyarrow, soundfile, soxr, yaml, cpprune.cli))
    _load_all(shards)
    _freeze()


def load_heavy(cache: Path) -> None:
    """Import the rest; matplotlib's cache lies in a folder that is made."""
    cache.mkdir()
    cache.chmod(0o777)
    os.environ["MPLCONFIGDIR"] = str(cache)
    import accelerate
    import matplotlib.pyplot as plt
    import torch
    import torch._dynamo
    import torch_pruning
    import torchinfo

    import cpprune

    assert all((accelerate, torch_pruning, torchinfo))
    _load_all(cpprune)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    plt.close(plt.figure())
    _freeze()


def _load_all(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(("__main__", "import_probe")):
            importlib.import_module(module.name)


def _freeze() -> None:
    gc.collect()
    gc.freeze()


def _is_wanted(line: Line, light: bool, commands: list[str] | None) -> bool:
    return line.light == light and (not commands or line.words[0] in commands)


def main() -> int:
    """Try inputs; the exit status is 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after so long")
    parser.add_argument("--only", type=int, nargs="*", help="these numbers alone, at length")
    parser.add_argument("--command", nargs="*", help="only these, such as train")
    parser.add_argument("--world", type=Path, help="made before, or to be made here")
    parser.add_argument("--out", type=Path, help="write what failed to this file")
    parser.add_argument("--keep", action="store_true", help="keep the folders of what failed")
    given = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="fuzz-"))
    base.chmod(0o711)
    world = given.world or base / "world"
    if not world.exists():
        log = base / "world.log"
        with log.open("w") as file:
            made = subprocess.run(
                [sys.executable, HERE / "fuzz_world.py", world],
                check=False,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        if made.returncode:
            print(log.read_text(), file=sys.stderr)
            return 2
    load_light()
    from fuzz_trial import Trials

    scratch = base / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    trials = Trials(world, scratch, given.seed)
    numbers = given.only or range(given.first, given.first + given.count)
    failed, ended, tried, spent = [], Counter(), Counter(), Counter()
    begin = time.monotonic()
    for light in (True, False):
        if not light:
            load_heavy(base / "matplotlib")
        # The light ones are a third of all, and done in a tenth of the time.
        until = begin + given.seconds * (0.3 if light else 1)
        mine = [n for n in numbers if _is_wanted(trials.line(n), light, given.command)]
        size = 1 if given.only else BATCH
        for first in range(0, len(mine), size):
            start = time.monotonic()
            if start > until:
                break
            for verdict, made in trials.run(mine[first : first + size]):
                now = time.monotonic()
                tried[verdict.command] += 1
                ended[verdict.status] += 1
                spent[verdict.command] += (now - start) / size
                if verdict.fault:
                    failed.append({**verdict.__dict__, "line": str(made), "what": made.what})
                    said = f"{verdict.number}: {verdict.fault}: {str(made)[:300]} {made.what}"
                    print(said[:900], flush=True)
                if given.only:
                    print(f"{made}\n{made.what}\nstatus {verdict.status}: {verdict.fault}")
                    print(verdict.text)
                if not given.keep:
                    shutil.rmtree(scratch / str(verdict.number), ignore_errors=True)
    report(failed if not given.only else [], tried, ended, spent, given.seed)
    if given.out:
        given.out.write_text(json.dumps(failed, indent=1))
    if not given.keep:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if any(f["fault"] for f in failed) else 0


def report(failed: list, tried: Counter, ended: Counter, spent: Counter, seed: int) -> None:
    """Print how many failed, by command and by cause."""
    bad = Counter(f["command"] for f in failed)
    for command, count in sorted(tried.items()):
        print(f"{command:<18} {bad[command]:>5} of {count:>6}  {spent[command]:6.0f} s")
    causes = defaultdict(list)
    for f in failed:
        causes[f["fault"]].append(f)
    print()
    for fault, found in sorted(causes.items(), key=lambda item: -len(item[1])):
        one = found[0]
        print(f"{len(found):>4} × {fault}")
        print(f"       {one['number']}: {one['line'][:200]}  {[str(w)[:120] for w in one['what']]}")
        print(f"       {one['text'].strip().splitlines()[-1][:250] if one['text'].strip() else ''}")
    statuses = ", ".join(f"{count} × status {status}" for status, count in sorted(ended.items()))
    total, seconds = sum(tried.values()), sum(spent.values())
    print(f"\n{len(failed)} of {total} inputs failed (seed {seed}, {seconds:.0f} s; {statuses})")


if __name__ == "__main__":
    sys.exit(main())
