import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import shards.build.dataset
import shards.build.spool
from shards import UserError
from shards.audio.clips import cut
from shards.audio.load import load
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions
from shards.reader import open_dataset

Hashes = Callable[[Path], dict[str, str]]

# Kills itself in the middle of the fourth shard.
KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
import shards.build.shard_job
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions

write, written = shards.build.shard_job.write_record, []

def write_or_die(*arguments):
    written.append(1)
    if len(written) == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)

shards.build.shard_job.write_record = write_or_die
options = BuildOptions(kind="tau2022", source=Path(sys.argv[1]), shard_size=40)
build_dataset(options, sys.argv[2], workers=1)
"""


def test_the_number_of_workers_changes_nothing(
    tau_options: BuildOptions, tau_dataset: Path, hashes: Hashes, tmp_path: Path
) -> None:
    build_dataset(tau_options, tmp_path / "d", workers=4)
    assert hashes(tmp_path / "d") == hashes(tau_dataset)
    assert set(hashes(tau_dataset)) == {
        "dataset.json",
        "index.parquet",
        *(f"train-00000{i}.tar" for i in range(4)),
        "val-000000.tar",
        *(f"test-00000{i}.tar" for i in range(2)),
    }


def test_another_folder_changes_nothing(
    tau_options: BuildOptions, tau_dataset: Path, hashes: Hashes, tmp_path: Path
) -> None:
    (tmp_path / "moved").symlink_to(tau_options.source)
    options = replace(tau_options, source=tmp_path / "moved")
    build_dataset(options, tmp_path / "d", workers=1)
    assert hashes(tmp_path / "d") == hashes(tau_dataset)
    assert str(tau_options.source) not in (tau_dataset / "dataset.json").read_text()


def test_the_seed_changes_splits_and_order(tau_options: BuildOptions, tmp_path: Path) -> None:
    first = build_dataset(tau_options, tmp_path / "a", workers=1)
    second = build_dataset(replace(tau_options, seed=1), tmp_path / "b", workers=1)
    assert first.index["sha256"] != second.index["sha256"]


def test_a_killed_build_goes_on(
    tau_options: BuildOptions, tau_dataset: Path, hashes: Hashes, tmp_path: Path
) -> None:
    out = tmp_path / "d"
    process = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, str(tau_options.source), str(out)], check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(kept) == 3
    with pytest.raises(UserError, match=r"--seed was 0, is 5.*start it with the same ones"):
        build_dataset(replace(tau_options, seed=5), out, workers=1)
    build_dataset(tau_options, out, workers=1)
    assert hashes(out) == hashes(tau_dataset)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_shard_damaged_in_between_is_made_again(
    tau_options: BuildOptions,
    tau_dataset: Path,
    hashes: Hashes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.build.dataset, "write_index", die)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(tau_options, tmp_path / "d", workers=1)
    with pytest.raises(UserError, match="its build did not finish"):
        shards.open_dataset(tmp_path / "d")
    shard = tmp_path / "d" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    build_dataset(tau_options, tmp_path / "d", workers=1)
    assert hashes(tmp_path / "d") == hashes(tau_dataset)


def test_sources_that_change_in_between(
    scenes_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in scenes_source.rglob("*"):
        target = tmp_path / "s" / path.relative_to(scenes_source)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    options = BuildOptions(kind="tau2022", source=tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(shards.build.dataset, "write_index", lambda *_: os.abort)
        with pytest.raises(UserError, match="cannot be written"):
            build_dataset(options, tmp_path / "d", workers=1)
    clip = next((tmp_path / "s" / "audio").iterdir())
    data = clip.read_bytes()
    clip.unlink()
    clip.write_bytes(data)
    with pytest.raises(UserError, match="files or lists have changed"):
        build_dataset(options, tmp_path / "d", workers=1)
    build_dataset(options, tmp_path / "d", workers=1, overwrite=True)


def test_a_finished_dataset(tau_options: BuildOptions, hashes: Hashes, tmp_path: Path) -> None:
    out = tmp_path / "d"
    manifest = build_dataset(tau_options, out, workers=1)
    before = hashes(out)
    assert build_dataset(tau_options, out, workers=1) == manifest
    other = replace(tau_options, val_fraction=0.2)
    with pytest.raises(UserError, match=r"finished dataset of other arguments.*--overwrite"):
        build_dataset(other, out, workers=1)
    assert hashes(out) == before
    (out / "val-000000.tar").unlink()
    with pytest.raises(UserError, match=r"val-000000\.tar is missing"):
        build_dataset(tau_options, out, workers=1)
    assert build_dataset(other, out, workers=1, overwrite=True) != manifest
    build_dataset(tau_options, out, workers=1, overwrite=True)
    assert hashes(out) == before


def test_what_is_not_ours_is_never_deleted(tau_options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"not a dataset and not empty \(it has thesis.txt\)"):
            build_dataset(tau_options, tmp_path, workers=1, overwrite=overwrite)
    with pytest.raises(UserError, match="is a file"):
        build_dataset(tau_options, tmp_path / "thesis.txt", workers=1)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    build_dataset(tau_options, tmp_path / "d", workers=1)
    (tmp_path / "d" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt is not part of a dataset"):
        build_dataset(replace(tau_options, seed=2), tmp_path / "d", workers=1, overwrite=True)
    assert (tmp_path / "d" / "thesis.txt").exists()
    assert (tmp_path / "d" / "dataset.json").exists()


def test_a_full_disk(
    tau_options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(shards.build.dataset.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UserError, match=r"the build takes 0\.0 GB and 0\.0 GB are free"):
        build_dataset(tau_options, tmp_path / "d", workers=1)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "esc50"),
        ("fractions", (0.5, 0.5)),
        ("fractions", (0.5, 0.1, 0.1)),
        ("val_fraction", 1.0),
        ("seconds", 0.0),
        ("sample_rate", 0),
        ("encoding", "mp3"),
        ("short", "stretch"),
        ("shard_size", 0),
        ("min_sound", 1.5),
        ("seed", -1),
        ("on_error", "pray"),
    ],
)
def test_options_out_of_range(name: str, value: object, tmp_path: Path) -> None:
    options = {"kind": "folder", "source": tmp_path, name: value}
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is "):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_recordings_decoded_once_give_the_same(
    tmp_path: Path,
    make_audio: Callable[..., Path],
    hashes: Hashes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("owl", "wren"):
        for i in range(6):
            make_audio(tmp_path / "s" / name / f"{i}.ogg", seconds=4.3 + i, rate=11025, seed=i)
    (tmp_path / "s" / "owl" / "broken.ogg").write_bytes(b"OggS no audio")
    options = BuildOptions(
        kind="folder", source=tmp_path / "s", sample_rate=8000, shard_size=20, on_error="skip"
    )
    with monkeypatch.context() as patch:
        patch.setattr(shards.build.spool, "CLIPS_PER_PART", 30)
        manifest = build_dataset(options, tmp_path / "spooled", workers=1)
    # The rests of 0.3 s fill less than half of a clip.
    assert manifest.index["rows"] == 2 * sum(range(4, 10))
    build_dataset(options, tmp_path / "parallel", workers=3)
    assert hashes(tmp_path / "spooled") == hashes(tmp_path / "parallel")
    dataset = open_dataset(tmp_path / "spooled")
    for name in manifest.splits:
        split = dataset.split(name)
        for key, clip in zip(split.keys, split.fetch(range(len(split))), strict=True):
            stem, _, number = key.rpartition("-")
            file = tmp_path / "s" / f"{stem.replace('_', '/')}.ogg"
            samples = load(file, 8000).samples
            assert (clip == cut(samples, int(number), 8000)).all()
