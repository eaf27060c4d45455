"""slurm/job.sh: what a job does when it is interrupted, with commands of SLURM that only note down."""

import getpass
import subprocess

import pytest
from cluster import REPOSITORY

FAKES = {
    "squeue": 'case $* in *%T*) echo "$STATE" ;; *%k*) cat "$NOTES/comment" ;; esac',
    "scontrol": 'echo "$*" >>"$NOTES/asked"\n'
    '[[ $1 != update ]] || echo "${3#Comment=}" >"$NOTES/comment"',
}


@pytest.fixture
def job(tmp_path):
    """Runs lines after job.sh, as a job; returns its exit status, messages and what it asked for."""
    site = (REPOSITORY / "slurm/site.env").read_text() + "MAX_REQUEUES=3\n"
    (tmp_path / "site.env").write_text(site)
    (tmp_path / "comment").write_text("(null)\n")
    for name, text in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"CPPRUNE_SITE": str(tmp_path / "site.env"), "SLURM_JOB_ID": "7"}
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "STATE": "RUNNING", "NOTES": str(tmp_path)}

    def run(lines, **variables):
        (tmp_path / "asked").write_text("")
        done = subprocess.run(
            ["bash", "-c", f"source slurm/job.sh\n{lines}"],
            cwd=REPOSITORY,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stderr, (tmp_path / "asked").read_text().splitlines()

    return run


def test_a_job_gives_up_after_so_many_returns_of_its_own(job):
    for count in (1, 2, 3):
        status, said, asked = job("requeue why")
        assert (status, asked) == (1, [f"update JobId=7 Comment=requeues={count}", "requeue 7"])
        assert said == f"slurm: why: back into the queue ({count} of 3)\n"
    status, said, asked = job("requeue why")
    assert (status, asked) == (1, [])
    assert said == "slurm: why: given up after 3 returns to the queue (MAX_REQUEUES)\n"


def test_the_comment_of_the_user_is_kept(job, tmp_path):
    (tmp_path / "comment").write_text("project 7\n")
    job("requeue why")
    assert (tmp_path / "comment").read_text() == "project 7 requeues=1\n"
    job("requeue why")
    assert (tmp_path / "comment").read_text() == "project 7 requeues=2\n"


def test_preemptions_do_not_count(job):
    """Not those after which SLURM puts the job back itself, nor those that leave it to the script."""
    assert job("true", SLURM_RESTART_COUNT="400")[0] == 0
    for _ in range(5):
        status, said, asked = job('kill -TERM $$; requeue "it was told to stop"')
        assert (status, asked) == (1, ["requeue 7"])
        assert said == "slurm: it was told to stop: back into the queue\n"


def test_only_a_running_job_is_put_back(job):
    assert job("requeue why", STATE="COMPLETING")[2] == []
    assert job('kill -TERM $$; requeue "why"', STATE="CANCELLED")[2] == []


def test_of_an_array_only_the_task_is_put_back(job):
    asked = job("requeue why", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")[2]
    assert asked == ["update JobId=7_2 Comment=requeues=1", "requeue 7_2"]


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_any_command_is_interrupted_and_put_back(job, signal):
    """The command is told to stop, and what comes after it is not done."""
    lines = f"(sleep 1; kill -{signal} $$) &\nto_end sleep 50\necho further >&2"
    status, said, asked = job(lines)
    assert status == 1
    assert asked[-1] == "requeue 7"
    assert "back into the queue" in said
    assert "further" not in said


def test_a_command_that_ends_well_all_the_same_is_done(job):
    lines = (
        "(sleep 1; kill -USR1 $$) &\nto_end bash -c 'trap exit TERM; while sleep 0.2; do :; done'"
    )
    assert job(f"{lines}\necho further >&2") == (0, "further\n", [])


def test_a_command_that_fails_ends_the_job(job):
    assert job("to_end bash -c 'exit 3'\necho further >&2") == (3, "", [])


@pytest.mark.parametrize("result", ['{\n  "failed": "it diverged"\n}', '{\n  "failures": 0\n}'])
@pytest.mark.parametrize("ended", [2, 0])
def test_a_run_that_has_diverged_is_neither_put_back_nor_done(job, tmp_path, result, ended):
    """The rest of what failed after it had saved something is put back; it may be told to stop, too."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "srun").write_text(
        f"#!/bin/bash\nmkdir {run}/checkpoints/step-3\n"
        f"echo '{result}' >{run}/result.json\nexit {ended}\n"
    )
    (tmp_path / "srun").chmod(0o755)
    status, said, asked = job(f"train_to_end launch/train.py data {run}\necho further >&2")
    diverged = '"failed"' in result
    assert bool(asked) == (diverged == (ended == 0))
    assert status == (0 if ended == 0 and not diverged else 1 if asked else 2)
    assert ("further" in said) == (status == 0)


def test_a_dataset_behind_a_url_is_cached_on_scratch(job, tmp_path):
    """There is nothing to copy; but not into a folder that others can write to."""
    own = tmp_path / "scratch" / f"cpprune-{getpass.getuser()}"
    with (tmp_path / "site.env").open("a") as file:
        file.write(f"SCRATCH='{tmp_path}/scratch'\n")
    lines = 'source slurm/stage.sh; keep_on_scratch "$DATA"; data=$(staged "$DATA")'
    lines += '; echo "$data ${CPPRUNE_CACHE:-none}" >&2'
    url = "s3://bucket/data"
    assert job(lines, DATA=url)[:2] == (0, f"{url} {own}/cache\n")
    assert job(lines, DATA=url, CPPRUNE_CACHE="/c")[:2] == (0, f"{url} /c\n")
    own.chmod(0o777)
    assert job(lines, DATA=url)[:2] == (0, f"{url} none\n")


# --- the site -----------------------------------------------------------------------------------------


def test_a_site_may_be_careless(job, tmp_path):
    """As the functions behind `module load` and `conda activate` are."""
    with (tmp_path / "site.env").open("a") as file:
        file.write('echo "$NOT_SET_ANYWHERE loaded"\nfalse\nfalse | true\nexport FROM_SITE=yes\n')
        file.write("[[ -n ${ALSO_NOT_SET} ]]\n")
    status, said, _ = job('echo "$FROM_SITE" >&2; set -o | grep -c "errexit.*on" >&2; : "$NONE"')
    assert "loaded" in said
    assert "yes\n1\n" in said
    assert status == 1, "after the site's lines a mistake of ours ends the job again"
    assert "NONE: unbound variable" in said


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (
            "unset OPTIONS; OPTIONS='--qos=long --exclusive'",
            ["OPTIONS must be a list", "OPTIONS=(--qos=long"],
        ),
        ("unset CONTAINER; CONTAINER='apptainer exec x.sif'", ["CONTAINER must be a list"]),
        ("GPUS_PER_NODE=a100", ["GPUS_PER_NODE=a100", "a100:4"]),
        ("GPUS_PER_NODE='4 --x'", ["GPUS_PER_NODE=4 --x"]),
        ("GPUS_PER_NODE=a100:2,v100:2", ["GPUS_PER_NODE=a100:2,v100:2"]),
        ("NODES=0", ["NODES=0"]),
        ("NODES=08", ["NODES=08"]),
        ("CPUS_PER_NODE='a[$(touch x)]'", ["CPUS_PER_NODE"]),
        ("unset TIME", ["TIME is not set"]),
        ("MAX_REQUEUES=many", ["MAX_REQUEUES=many"]),
        ("SHARD_TASKS=4%", ["SHARD_TASKS=4%"]),
        ("if true", ["cannot be read"]),
    ],
    ids=str,
)
def test_mistakes_in_a_site(job, tmp_path, lines, names):
    with (tmp_path / "site.env").open("a") as file:
        file.write(lines + "\n")
    status, said, _ = job("true")
    assert status == 2
    line = said.splitlines()[-1]
    assert line.startswith(f"slurm: error: {tmp_path}/site.env: ")
    for name in names:
        assert name in line


@pytest.mark.parametrize(
    ("gpus", "processes", "threads"),
    [
        ("0", 1, 8),
        ("4", 4, 2),
        ("a100:4", 4, 2),
        ("gpu:4", 4, 2),
        ("gpu:a100:2", 2, 4),
        ("--gres=gpu:a100:16", 16, 1),
    ],
)
def test_processes_of_a_node(job, tmp_path, gpus, processes, threads):
    with (tmp_path / "site.env").open("a") as file:
        file.write(f"GPUS_PER_NODE={gpus}\n")
    assert job('echo "$processes $threads" >&2')[1] == f"{processes} {threads}\n"


def test_a_site_of_before_is_read(job, tmp_path):
    """Without the settings that came later, and without a value where none is needed."""
    lines = "NODES=1 GPUS_PER_NODE=1 CPUS_PER_NODE=8 TIME=1 SAVE_SECONDS=1 MAX_REQUEUES=1\n"
    (tmp_path / "site.env").write_text(f"{lines}SHARD_TASKS=1 PYTHON=python OPTIONS=\n")
    counts = "${#OPTIONS[@]} ${#GPU_OPTIONS[@]} ${#CPU_OPTIONS[@]} ${#CONTAINER[@]} [$SCRATCH]"
    assert job(f'echo "{counts}" >&2')[:2] == (0, "0 0 0 0 []\n")
