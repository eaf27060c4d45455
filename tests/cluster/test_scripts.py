"""The scripts of slurm/ as texts: their syntax, and what submit.sh would do."""

import subprocess
from pathlib import Path

import pytest
from cluster import REPOSITORY
from programs import required

SCRIPTS = sorted(path for path in (REPOSITORY / "slurm").iterdir() if path.is_file())
GOLDEN = Path(__file__).parent / "golden"

CHAIN = "--source TAU --data data/tau --out runs/big --train configs/big.yaml"
CHAIN += " --prune configs/prune.yaml"
ARGUMENTS = {
    "chain": f"{CHAIN} -- --train.epochs 20",
    "seeds": f"{CHAIN} --kind folder --seeds 0-4%2 --build --fractions 0.7,0.1,0.2",
    "sweep": "--data data/tau --out runs/big --train configs/big.yaml --agents 8%2"
    " --sweep configs/sweeps/criterion.yaml -- --train.epochs 20",
    "prune": "--data data/tau --out runs/big --prune configs/prune.yaml -- --init old/model",
}

# What the golden files are made with: every setting that changes a command.
SITE = """
PARTITION=gpu
CPU_PARTITION=cpu
ACCOUNT='my lab'
OPTIONS=(--qos=long)
GPU_OPTIONS=(--constraint=a100)
CPU_OPTIONS=(--qos=cpu --exclude='n[1-2]')
NODES=2
GPUS_PER_NODE=gpu:a100:4
MEMORY_PER_NODE=64G
"""


def submit(*arguments, repository=REPOSITORY):
    return subprocess.run(
        [repository / "slurm/submit.sh", *arguments], capture_output=True, text=True
    )


def test_there_are_scripts():
    assert {"submit.sh", "train.sbatch", "site.env"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_syntax(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shellcheck():
    program = required("shellcheck", "shellcheck")
    done = subprocess.run(
        [program, "--external-sources", *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ARGUMENTS)
def test_dry_run(name, tmp_path):
    site = tmp_path / "site.env"
    site.write_text((REPOSITORY / "slurm/site.env").read_text() + SITE)
    root = tmp_path / "cpprune"  # a path that needs no quotes
    root.symlink_to(REPOSITORY)
    done = submit("--dry-run", "--site", site, *ARGUMENTS[name].split(), repository=root)
    assert done.returncode == 0, done.stderr
    scripts, _, commands = done.stdout.partition("# ---- commands\n")
    assert commands.replace(str(root), "ROOT") == (GOLDEN / f"{name}.txt").read_text()
    for path in SCRIPTS:
        if path.suffix == ".sbatch" or path.name in (
            *("read_site.sh", "job.sh", "stage.sh", "on_node.sh"),
        ):
            assert f"# ---- slurm/{path.name}\n{path.read_text()}" in scripts
    assert not (REPOSITORY / "runs/big").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--out runs/big --train configs/big.yaml", ["--data and --out"]),
        ("--data d --out o", ["nothing to do"]),
        ("--data d --out o --train configs/none.yaml", ["configs/none.yaml"]),
        ("--data d --out o --source s --site none.env", ["none.env"]),
        ("--data d --out o --prune configs/prune.yaml --seeds 0-2", ["--seeds", "--train"]),
        ("--data d --out o --train configs/big.yaml --epochs 2", ["--epochs", "after --"]),
        ("--data d --out", ["--out needs a value"]),
        ("--data d --out o --sweep configs/sweeps/none.yaml", ["configs/sweeps/none.yaml"]),
        ("--data d --out o --sweep README.md --seeds 0-2", ["--sweep", "--seeds"]),
        ("--data d --out o --sweep README.md --agents 0", ["--agents 0"]),
        ("--data d --out o --sweep README.md --agents 8%0", ["--agents 8%0"]),
        ("--data d --out o --train README.md --seeds 0..4", ["--seeds 0..4"]),
        ("--data d --out o --source s -- --train.epochs 20", ["--train.epochs", "--build"]),
        ("--data d --out o --train README.md --build --seed 1", ["--build", "--source"]),
        ("--data d --out o --source s --build --train README.md", ["--train after --build"]),
        ("--data d --out o --source s --build --out=x", ["--out after --build"]),
        ("--data d --out o --source s --build --overwrite", ["--overwrite after --build"]),
        ("--data d --out o --source s --build --part 1", ["--part after --build", "SHARD_TASKS"]),
        ("--data d --out o --source s --build -- --x", ["--build needs options"]),
        ("--data d --out o\\x --source s", ["--out o\\x", "backslash"]),
    ],
    ids=str,
)
def test_mistakes(arguments, names):
    done = submit(*arguments.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("submit.sh: error: ")
    for name in names:
        assert name in line


def test_help():
    done = submit("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: slurm/submit.sh ")
