"""The scripts of slurm/, on a real SLURM of two nodes: what is interrupted ends as if it was not."""

import json
import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cluster import logs
from run_folder import assert_same_run, epochs_of

pytestmark = pytest.mark.slurm


@contextmanager
def held(run):
    """Stops the processes of a run for the length of a block."""
    numbers = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has just ended
        if "launch/train.py" in words and f"--run={run}" in words:
            numbers.append(int(process.name))
    assert numbers
    for number in numbers:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(ProcessLookupError):  # SLURM wakes what it ends
                os.kill(number, signal.SIGCONT)


def test_the_chain(chain, hashes, scenes_source, tmp_path):
    from shards.build.dataset import build_dataset
    from shards.build.plan import BuildOptions

    build_dataset(BuildOptions(kind="tau2022", source=scenes_source), tmp_path, workers=1)
    assert hashes(chain / "data") == hashes(tmp_path), "parts joined are the whole"
    for name in ("train", "pruned"):
        run = chain / "runs" / name
        result = json.loads((run / "result.json").read_text())
        report = json.loads((run / "test.json").read_text())
        assert report["parameters"] == result["parameters"]
        assert report["clips"] == 50
    trained, pruned = (
        json.loads((chain / f"runs/{name}/result.json").read_text())["parameters"]
        for name in ("train", "pruned")
    )
    assert pruned < trained == 2_650
    (log,) = (chain / "runs/logs").glob("train-*.out")
    assert "2 process(es) on cpu" in log.read_text()
    assert log.read_text().count(" is copied to ") == 1, "the nodes share this machine's disk"


def test_interrupted(cluster, chain, submit, ended, site, configs, tmp_path):
    """Preempted, then without a node, then out of time: the same bits in the end."""
    run = tmp_path / "runs/train"
    jobs = submit(
        *("--site", site("MAX_REQUEUES=1\n"), "--data", chain / "data"),
        *("--out", tmp_path / "runs", "--train", configs / "train.yaml"),
    )
    train = jobs["train"]

    def started():
        job = cluster.job(train)
        return job["JobState"], job["Restarts"]

    def further(before):
        return (run / "model_last").exists() and len(epochs_of(run)) > before

    def running(restarts):
        """Wait until the run has come an epoch further, after so many restarts; hold it there."""
        cluster.wait(lambda: started() == ("RUNNING", str(restarts)), 100, f"start {restarts}")
        before = len(epochs_of(run)) if restarts else 0
        cluster.wait(lambda: further(before), 300, f"epoch after {restarts} restarts")
        return held(run)

    def restarted():
        return cluster.job(train)["JobState"] != "RUNNING"

    def minutes():
        hours, minutes, _ = cluster.job(train)["RunTime"].split(":")
        return 60 * int(hours) + int(minutes)

    with running(restarts=0):
        urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
        cluster.run("sbatch", *urgent, "--wrap=sleep 1")
        cluster.wait(restarted, 60, "preemption")
    with running(restarts=1):
        cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        cluster.wait(restarted, 60, "failure of a node")
    cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    with running(restarts=2):
        # Less than two minutes are left: SAVE_SECONDS and the half minute between two looks at it.
        cluster.run("scontrol", "update", f"JobId={train}", f"TimeLimit={minutes() + 2}")
        cluster.wait((run / "STOP").exists, 60, "signal")
    cluster.run("scontrol", "update", f"JobId={train}", "TimeLimit=30")
    assert ended(jobs) == {"train": "COMPLETED", "evaluate": "COMPLETED"}
    (log,) = (tmp_path / "runs/logs").glob("train-*.out")
    text = log.read_text()
    assert cluster.job(train)["Restarts"] == "3", text
    assert "its time is up: back into the queue (1 of 1)" in text, "preemption does not count"
    assert text.count("goes on from step-") == 3, "it never began again"
    assert_same_run(run, chain / "runs/train")


def test_stopped_by_hand(cluster, chain, submit, ended, site, configs, tmp_path):
    """STOP and scancel save and end the chain; nothing comes back into the queue."""
    run = tmp_path / "runs/train"
    arguments = ("--site", site("NODES=1\n"), "--data", chain / "data", "--out", tmp_path / "runs")
    arguments += ("--train", configs / "train.yaml")
    jobs = submit(*arguments)
    cluster.wait((run / "model_last").exists, 300, "epoch")
    (run / "STOP").touch()
    assert ended(jobs) == {"train": "FAILED", "evaluate": "CANCELLED"}
    saved = len(epochs_of(run))
    again = submit(*arguments)
    cluster.wait(lambda: len(epochs_of(run)) > saved, 300, "epoch")
    cluster.run("scancel", again["train"])
    assert ended(again) == {"train": "CANCELLED", "evaluate": "CANCELLED"}
    texts = []
    for job in (jobs["train"], again["train"]):
        assert cluster.job(job)["Restarts"] == "0"
        texts.append((tmp_path / f"runs/logs/train-{job}.out").read_text())
    assert f"stopped by {run}/STOP; submit it again to go on" in texts[0]
    assert "epoch 1/" not in texts[1], "it went on"
    assert "stopped by SIGTERM" in texts[1]
    assert not (run / "result.json").exists()


def test_a_job_that_fails_ends_the_chain(cluster, chain, submit, ended, site, configs, tmp_path):
    jobs = submit(
        *("--site", site("NODES=1\n"), "--data", chain / "data", "--out", tmp_path / "runs"),
        *("--train", configs / "train.yaml", "--prune", configs / "prune.yaml"),
        *("--", "--optim.lr", "-1"),
    )
    assert ended(jobs) == {"train": "FAILED", "prune": "CANCELLED", "evaluate": "CANCELLED"}
    log = (tmp_path / f"runs/logs/train-{jobs['train']}.out").read_text()
    assert "cpprune: error: optim.lr=-1" in log
    assert "failed before it had saved anything new" in log


def test_seeds(cluster, chain, submit, ended, site, configs, tmp_path):
    out = tmp_path / "runs"
    jobs = submit(
        *("--site", site("NODES=1\n"), "--data", chain / "data", "--out", out),
        *("--train", configs / "short.yaml", "--seeds", "1,3"),
    )
    assert ended(jobs) == {"seeds": "COMPLETED", "summary": "COMPLETED"}, logs(tmp_path)
    summary = json.loads((out / "train.json").read_text())
    losses = [
        json.loads((out / f"seed-{seed}/train/test.json").read_text())["log_loss"]
        for seed in (1, 3)
    ]
    assert summary["figures"]["log_loss"]["values"] == losses
    assert losses[0] != losses[1]
    deviation = abs(losses[0] - losses[1]) / 2**0.5
    assert summary["figures"]["log_loss"]["deviation"] == pytest.approx(deviation)


def test_a_sweep(cluster, submit, ended, site, tmp_path):
    """Two jobs share the trials; preempted, they go on where they were."""
    tree = {
        "method": "grid",
        "metric": {"name": "val_log_loss"},
        "parameters": {"x": {"values": [1, 2, 3, 4]}},
        "program": "tests/sweeps/quick_run.py",
        "command": ["${interpreter}", "${program}", "--pause=0.5", "--epochs=16", "${args}"],
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(tree))
    out = tmp_path / "runs"
    jobs = submit(
        *("--site", site("NODES=1\n"), "--data", tmp_path, "--out", out),
        *("--sweep", tmp_path / "sweep.yaml", "--agents", 2),
    )
    runs = [out / f"sweep/trial-{number:04d}" for number in range(4)]
    cluster.wait(lambda: all((run / "metrics.jsonl").exists() for run in runs[:2]), 60, "epochs")
    before = [len(epochs_of(run)) for run in runs[:2]]
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    assert ended(jobs) == {"sweep": "COMPLETED"}, logs(tmp_path)
    text = logs(tmp_path)
    assert text.count(" begins: ") == 4, text
    assert text.count(" resumes: ") == 2, text
    for run in runs:
        assert [line["epoch"] for line in epochs_of(run)] == list(range(16))
    assert max(before) < 16
