"""Jobs that save nothing, on a real SLURM: interrupted, they are put back and done again."""

import json
import shlex
import shutil
import sys

import pytest
from cluster import REPOSITORY, logs

pytestmark = pytest.mark.slurm


# Holds the first of a kind of command until it is told to stop, so that there is time to interrupt it.
HOLDING = """#!/bin/bash
if [[ "$*" == *"$HELD"* && ! -e "$NOTE" ]]; then
    touch "$NOTE"
    exec sleep 300
fi
exec %s "$@"
"""


@pytest.fixture
def held(site, tmp_path):
    """Makes the settings of a site whose Python holds one command; returns them and what says so."""

    def make(command, more):
        python, note = tmp_path / "a python", tmp_path / "note"
        python.write_text(HOLDING % shlex.quote(sys.executable))
        python.chmod(0o755)
        lines = f"PYTHON='{python}'\nexport NOTE='{note}' HELD='{command}'\nSHARD_TASKS=1\n"
        return site(lines + more), note

    return make


@pytest.fixture
def interrupt(cluster):
    """Interrupts a job as its time limit or another job does."""

    def do(job, how):
        if how == "USR1":  # what SLURM sends before the time limit
            cluster.run("scancel", "--batch", "--signal=USR1", job)
        else:
            urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
            cluster.run("sbatch", *urgent, "--wrap=sleep 1")

    return do


@pytest.mark.parametrize("how", ["USR1", "preempted"])
def test_an_evaluation(cluster, held, interrupt, ended, tiny_run, scenes, tmp_path, how):
    run, log = tmp_path / "50% of it/run", tmp_path / "evaluate.out"
    shutil.copytree(tiny_run, run)
    # A preemption does not count.
    where, note = held("cpprune evaluate", f"MAX_REQUEUES={int(how == 'USR1')}\n")
    job = cluster.run(
        *("sbatch", "--parsable", f"--chdir={REPOSITORY}", f"--export=ALL,CPPRUNE_SITE={where}"),
        *(f"--output={log}", REPOSITORY / "slurm/evaluate.sbatch", scenes, run),
    )
    cluster.wait(note.exists, 200, "evaluation")
    interrupt(job, how)
    assert ended({"evaluate": job}) == {"evaluate": "COMPLETED"}, log.read_text()
    assert cluster.job(job)["Restarts"] == "1"
    assert ("its time is up: back into the queue (1 of 1)" in log.read_text()) == (how == "USR1")
    assert json.loads((run / "test.json").read_text())["clips"] == 50


@pytest.mark.parametrize(("step", "how"), [("build", "USR1"), ("verify", "preempted")])
def test_making_a_dataset(
    cluster, held, interrupt, submit, ended, scenes_source, tmp_path, step, how
):
    """A part, and the job that joins parts; with a space and a % in the paths."""
    folder = tmp_path / "50% of it"
    folder.mkdir()
    where, note = held(f"shards {step}", f"MAX_REQUEUES={int(how == 'USR1')}\n")
    jobs = submit(
        *("--site", where, "--source", scenes_source, "--data", folder / "data"),
        *("--out", folder / "runs", "--build", "--shard-size", "64"),
    )
    cluster.wait(note.exists, 200, step)
    interrupted = jobs[{"build": "shards", "verify": "join"}[step]]
    interrupt(interrupted, how)
    states = ended(jobs)
    assert set(states.values()) == {"COMPLETED"}, f"{states}\n{logs(folder)}"
    assert cluster.job(interrupted)["Restarts"] == "1"
    assert ("its time is up: back into the queue (1 of 1)" in logs(folder)) == (how == "USR1")
    assert len(list((folder / "data").glob("train-*.tar"))) == 2, "options of the build arrive"
