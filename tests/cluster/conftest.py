"""One SLURM for all tests, and what they submit to it."""

import shlex
import subprocess
import sys

import pytest
from cluster import REPOSITORY, Cluster, logs
from programs import required

# A tiny network on all nodes, one process each; many epochs, so that there is time to interrupt.
TINY = """
model: {widths: [6, 8, 10]}
optim: {schedule: constant, lr: 1e-2, weight_decay: 0}
data: {train_fraction: 0.5}
train: {batch_size: 16, epochs: %d}
"""
EPOCHS = 12

SITE = f"""
PARTITION=normal
NODES=2
GPUS_PER_NODE=0
CPUS_PER_NODE=1
TIME=30
SAVE_SECONDS=90
SHARD_TASKS=2
PYTHON={shlex.quote(sys.executable)}
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Writes a site.env with other settings than the repository's."""

    def write(more=""):
        path = tmp_path_factory.mktemp("site") / "site.env"
        path.write_text((REPOSITORY / "slurm/site.env").read_text() + SITE + more)
        return path

    return write


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, free_port):
    for program in ("slurmctld", "slurmd", "sbatch"):
        required(program, "slurm-wlm")
    required("munged", "munge")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), free_port)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    """Two configurations: to train, and to prune."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "train.yaml").write_text(TINY % EPOCHS)
    (folder / "prune.yaml").write_text(TINY % 2 + "prune: {ratio: 0.41}\n")
    (folder / "short.yaml").write_text(TINY % 1)
    return folder


@pytest.fixture(scope="session")
def submit(cluster):
    """Runs submit.sh; returns {name of a job: its number}."""

    def run(*arguments):
        environment = {**cluster.environment, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [REPOSITORY / "slurm/submit.sh", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return dict(line.split(": job ") for line in done.stdout.splitlines())

    return run


@pytest.fixture(scope="session")
def ended(cluster):
    """Waits until all jobs have come to an end; returns the state of each."""

    def wait(jobs, seconds=1200):
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        def states():
            return {name: cluster.job(number)["JobState"] for name, number in jobs.items()}

        cluster.wait(lambda: all(s in ends for s in states().values()), seconds, f"end of {jobs}")
        return states()

    return wait


@pytest.fixture(scope="session")
def chain(cluster, submit, ended, site, configs, scenes_source, tmp_path_factory):
    """The folder of dataset and runs of one uninterrupted chain, from recordings to figures."""
    folder = tmp_path_factory.mktemp("chain")
    scratch = f"SCRATCH={folder}/scratch\n"
    jobs = submit(
        *("--site", site(scratch), "--source", scenes_source, "--data", folder / "data"),
        *("--train", configs / "train.yaml", "--prune", configs / "prune.yaml"),
        *("--out", folder / "runs"),
    )
    assert set(jobs) == {"shards", "join", "train", "prune", "evaluate"}
    states = ended(jobs)
    assert set(states.values()) == {"COMPLETED"}, f"{states}\n{cluster.logs()}\n{logs(folder)}"
    return folder
