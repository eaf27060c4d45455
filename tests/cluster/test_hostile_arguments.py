"""Arguments and paths with what shells and SLURM take apart, given to an sbatch that notes them down."""

import os
import shutil
import subprocess

import pytest
from cluster import REPOSITORY

WORDS = [
    "a b",
    "it's",
    'say "x"',
    "100%j",
    "*",
    "$HOME",
    "`id`",
    "-x",
    "new\nline",
    "a,b",
    "é",
    "#",
    "~",
]
OPTIONS = ["data", "out", "source", "kind", "train", "prune", "seeds", "sweep", "agents", "site"]
SBATCH = """#!/bin/bash
for word in "$@"; do printf '%s\\0' "$word"; done >"$NOTES/$(ls "$NOTES" | wc -l).words"
[[ "$*" != *"$REFUSED"* ]] || { echo "sbatch: error: no" >&2; exit 1; }
env | grep ^SLURM_ >"$NOTES/../environment"
echo "4$(ls "$NOTES" | wc -l);cluster"
"""


@pytest.fixture
def submit(tmp_path):
    """Runs a copy of submit.sh in a folder of its own; returns what was run, and each job's words."""
    here = tmp_path / "the repository"
    shutil.copytree(REPOSITORY / "slurm", here / "slurm")
    notes, programs = tmp_path / "notes", tmp_path / "programs"
    notes.mkdir()
    programs.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("scancel", '#!/bin/bash\necho "$@" >"$NOTES/../ended"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(*arguments, refused="nothing", **variables):
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(notes)}
        done = subprocess.run(
            [here / "slurm/submit.sh", *arguments],
            env=environment | {"REFUSED": refused} | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        jobs = sorted(notes.iterdir(), key=lambda path: int(path.stem))
        return done, [job.read_text().split("\0")[:-1] for job in jobs]

    run.here = here
    return run


def after(words, script):
    """Return a job's own arguments."""
    return words[words.index(f"slurm/{script}.sbatch") + 1 :]


@pytest.mark.parametrize("word", WORDS)
def test_every_word_arrives_as_it_was_given(submit, word):
    for name in ("train", "prune"):
        (submit.here / f"{word}.{name}").write_text("")
    (submit.here / f"{word}.env").write_text((submit.here / "slurm/site.env").read_text())
    path = f"./{word}" if word.startswith("-") else word
    done, jobs = submit(
        *("--source", word, "--data", word, "--out", word, "--site", f"{word}.env"),
        *("--train", f"{word}.train", "--prune", f"{word}.prune"),
        *("--build", "--label-column", word, "--", "--note", word),
    )
    assert done.returncode == 0, done.stderr
    shards, join, train, prune, evaluate = jobs
    for one in (shards, join):
        assert after(one, "shards") == [path, "tau2022", path, "--label-column", word]
    assert after(train, "train") == [path, path, f"{path}.train", "--note", word]
    assert after(prune, "prune") == [path, path, f"{path}.prune", "--note", word]
    assert after(evaluate, "evaluate") == [path, f"{path}/train", f"{path}/pruned"]
    for one in jobs:
        assert f"--output={path.replace('%', '%%')}/logs/%x-%j.out" in one
        assert f"--chdir={submit.here}" in one
    assert (submit.here / word / "logs").is_dir()


def test_dry_run_prints_what_a_shell_reads_back(submit):
    (submit.here / "train.yaml").write_text("")
    words = [word for word in WORDS if "\n" not in word]
    arguments = ["--data", "d e", "--out", "o'%", "--train", "train.yaml", "--", *words]
    done, _ = submit("--dry-run", *arguments)
    printed = done.stdout.partition("# ---- commands\n")[2].splitlines()[0]
    read = subprocess.run(
        ["bash", "-c", f"set -- {printed}\nprintf '%s\\n' \"$@\""], capture_output=True, text=True
    )
    assert after(read.stdout.splitlines(), "train")[3:] == words
    _, jobs = submit(*arguments)
    assert read.stdout.splitlines() == ["sbatch", *jobs[0]]


@pytest.mark.parametrize("option", OPTIONS)
def test_no_value_is_taken_for_not_given(submit, option):
    done, jobs = submit("--data", "d", "--out", "o", "--source", "s", f"--{option}", "")
    assert (done.returncode, jobs) == (2, [])
    assert done.stderr.startswith(f"submit.sh: error: --{option} needs a value")


@pytest.mark.parametrize(
    ("gpus", "asked"),
    [
        ("4", "--gpus-per-node=4"),
        ("a100:4", "--gpus-per-node=a100:4"),
        ("gpu:a100:4", "--gres=gpu:a100:4"),
        ("--gres=gpu:2", "--gres=gpu:2"),
        ("0", None),
    ],
)
def test_gpus_and_their_options(submit, gpus, asked):
    """What is for GPUs goes to the jobs that have them, and to no other."""
    with (submit.here / "slurm/site.env").open("a") as site:
        site.write(
            f"GPUS_PER_NODE={gpus}\nOPTIONS=(--all)\nGPU_OPTIONS=(--gpu)\nCPU_OPTIONS=(--cpu)\n"
        )
    (submit.here / "train.yaml").write_text("")
    done, jobs = submit("--source", "s", "--data", "d", "--out", "o", "--train", "train.yaml")
    assert done.returncode == 0, done.stderr
    for words in jobs:
        on_gpu = "--job-name=train" in words and asked is not None
        assert "--all" in words
        assert ("--gpu" in words, "--cpu" in words) == (on_gpu, not on_gpu)
        requests = [w for w in words if w.startswith(("--gpus-per-node", "--gres"))]
        assert requests == ([asked] if on_gpu else [])


def test_throttles(submit):
    (submit.here / "x.yaml").write_text("")
    _, jobs = submit("--data", "d", "--out", "o", "--sweep", "x.yaml", "--agents", "8%2")
    assert "--array=1-8%2" in jobs[-1]
    _, jobs = submit("--data", "d", "--out", "o", "--train", "x.yaml", "--seeds", "0-9:3,20%2")
    assert "--array=0-9:3,20%2" in jobs[1]


def test_a_chain_that_is_refused_half_way_is_taken_back(submit, tmp_path):
    (submit.here / "x.yaml").write_text("")
    arguments = ("--source", "s", "--data", "d", "--out", "o", "--train", "x.yaml")
    done, _ = submit(*arguments, refused="--job-name=train")
    assert done.returncode == 2
    assert "sbatch refuses train, see above; cancelled: 41 42" in done.stderr.splitlines()[-1]
    assert (tmp_path / "ended").read_text() == "41 42\n"


def test_from_within_a_job(submit, tmp_path):
    """What SLURM has set for that job is not set for those that it submits."""
    outer = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "9", "SLURM_CONF": "/x"}
    done, _ = submit("--data", "d", "--out", "o", "--source", "s", **outer)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "environment").read_text() == "SLURM_CONF=/x\n"


def test_what_a_site_prints_is_no_answer(submit):
    with (submit.here / "slurm/site.env").open("a") as site:
        site.write("echo loading modules\nfalse\n")
    done, _ = submit("--data", "d", "--out", "o", "--source", "s")
    assert done.stdout.splitlines() == ["shards: job 41", "join: job 42"]
    assert "loading modules" in done.stderr
