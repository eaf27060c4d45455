"""Copying a dataset to a node's own disk, which others can write to as well."""

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import REPOSITORY

TAKE = 'set -euo pipefail; source slurm/stage.sh; data=$(staged "$DATA"); echo "$data"'


@pytest.fixture
def dataset(scenes, tmp_path):
    return Path(shutil.copytree(scenes, tmp_path / "data set"))


@pytest.fixture
def scratch(tmp_path):
    """A disk of a node: all may write there."""
    folder = tmp_path / "scratch disk"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def own(scratch):
    return scratch / f"cpprune-{getpass.getuser()}"


def begin(dataset, scratch, lines=TAKE):
    environment = {"DATA": str(dataset), "SCRATCH": str(scratch), "PYTHON": sys.executable}
    return subprocess.Popen(
        ["bash", "-c", f"CONTAINER=(); {lines}"],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stage(dataset, scratch, lines=TAKE):
    """Returns exit status, the printed place and what was said."""
    process = begin(dataset, scratch, lines)
    out, err = process.communicate(timeout=600)
    return process.returncode, out.removesuffix("\n"), err


def same(copy, dataset, hashes):
    return hashes(Path(copy)) == hashes(dataset)


def test_it_is_copied_once(dataset, scratch, own, hashes):
    processes = [begin(dataset, scratch) for _ in range(2)]
    ended = [process.communicate(timeout=600) for process in processes]
    copies = {out.removesuffix("\n") for out, _ in ended}
    assert len(copies) == 1
    assert Path(*copies).parent == own
    assert same(*copies, dataset, hashes)
    assert sum("is copied to" in err for _, err in ended) == 1
    assert own.stat().st_mode & 0o777 == 0o700
    assert stage(dataset, scratch) == (0, *copies, "")


def test_without_a_disk_or_behind_a_url_it_stays(dataset, scratch):
    assert stage(dataset, "") == (0, str(dataset), "")
    assert stage("s3://bucket/data", scratch) == (0, "s3://bucket/data", "")
    assert list(scratch.iterdir()) == []


def test_nothing_is_written_through_a_link(dataset, scratch, own, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    own.symlink_to(victim)
    status, place, said = stage(dataset, scratch)
    assert (status, place) == (0, str(dataset))
    assert said.count("\n") == 1
    assert f"{own} can be written by others" in said
    assert [path.name for path in victim.iterdir()] == ["precious"]


def test_what_others_can_write_is_not_used(dataset, scratch, own):
    """A copy that looks finished, in a folder that was not ours alone."""
    _, place, _ = stage(dataset, scratch)
    index = Path(place) / "index.parquet"
    index.write_bytes(bytes(index.stat().st_size))
    own.chmod(0o777)
    assert stage(dataset, scratch)[:2] == (0, str(dataset))
    if os.getuid() == 0:
        own.chmod(0o700)
        os.chown(own, 65534, 65534)
        status, place, said = stage(dataset, scratch)
        assert (status, place) == (0, str(dataset))
        assert f"{own} can be written by others, or was made by them" in said


def test_a_copy_that_is_no_longer_whole_is_made_anew(dataset, scratch, hashes):
    _, place, _ = stage(dataset, scratch)
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"x")):
        spoil(next(Path(place).glob("train-*.tar")))
        status, again, said = stage(dataset, scratch)
        assert (status, again) == (0, place)
        assert "is copied to" in said
        assert same(place, dataset, hashes)


def test_a_disk_that_is_too_small_is_left_alone(dataset, scratch, own):
    small = f"df() {{ printf 'Avail\\n1000\\n'; }}; {TAKE}"
    status, place, said = stage(dataset, scratch, small)
    assert (status, place) == (0, str(dataset))
    assert "may have no room" in said
    assert [path.suffix for path in own.iterdir()] == [".lock"]
    failing = f'cp() {{ command cp "$@"; return 1; }}; {TAKE}'
    assert stage(dataset, scratch, failing)[:2] == (0, str(dataset))
    assert [path.suffix for path in own.iterdir()] == [".lock"]


def test_a_damaged_dataset_ends_the_job(dataset, scratch, own):
    shard = next(dataset.glob("train-*.tar"))
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    status, place, said = stage(dataset, scratch)
    assert (status, place) == (1, "")
    assert shard.name in said
    assert "is damaged" in said
    assert [path.suffix for path in own.iterdir()] == [".lock"]
