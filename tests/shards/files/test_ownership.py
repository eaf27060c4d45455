"""What others made outlives a build, a download and a synthesis into its folder."""

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from snapshot import fill, snapshot

import shards.build.dataset
from shards.build.dataset import build_dataset
from shards.build.plan import BuildOptions, Plan
from shards.cli.main import main
from shards.errors import UserError
from shards.files.ownership import Kind, claim, remove, replaced_folder
from shards.manifest import read_manifest
from shards.remote.cache import Cache
from shards.remote.download import DATASETS, download
from shards.sources.synthetic import synthesise
from shards.verify import verify

Hashes = Callable[[Path], dict[str, str]]
PHOTOS = ("one.jpg", "holidays/two.jpg")


@pytest.fixture
def dataset(tau_options: BuildOptions, tmp_path: Path) -> Path:
    """A dataset of a test's own."""
    build_dataset(tau_options, tmp_path / "d", workers=1)
    return tmp_path / "d"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        (".build/main.o", ".build/deep/er.o"),
        (".build/plan.json",),
        ("dataset.json",),
        ("dataset.json", "train-000000.tar", "index.parquet"),
        (".build/lock", "photo.jpg"),
    ],
)
def test_a_build_into_a_folder_of_others(
    names: tuple[str, ...], overwrite: bool, tau_options: BuildOptions, tmp_path: Path
) -> None:
    out = fill(tmp_path / "theirs", *names)
    before = snapshot(out)
    with pytest.raises(UserError, match=r"--out .*theirs"):
        build_dataset(tau_options, out, workers=1, overwrite=overwrite)
    assert snapshot(out) == before


@pytest.mark.parametrize(
    "name", ["train-notes.tar", "train-000099.tar", "test-photos/one.jpg", ".build/main.o"]
)
def test_only_what_the_manifest_lists_is_overwritten(
    name: str, tau_options: BuildOptions, dataset: Path
) -> None:
    fill(dataset, name)
    before = snapshot(dataset)
    with pytest.raises(UserError, match="move it away"):
        build_dataset(replace(tau_options, seed=2), dataset, workers=1, overwrite=True)
    assert snapshot(dataset) == before


def test_a_manifest_that_lists_what_no_build_writes(
    tau_options: BuildOptions, dataset: Path, tmp_path: Path
) -> None:
    fill(tmp_path, "precious.tar")
    manifest = read_manifest(dataset)
    first = replace(manifest.shards[0], name="../precious.tar")
    other = replace(manifest, shards=(first, *manifest.shards[1:])).sealed()
    (dataset / "dataset.json").write_bytes(other.to_bytes())
    with pytest.raises(UserError, match="is not part of a dataset"):
        build_dataset(tau_options, dataset, workers=1, overwrite=True)
    assert (tmp_path / "precious.tar").is_file()


def test_a_shard_that_this_build_did_not_make(
    tau_options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.build.dataset, "_make_shards", die)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(tau_options, tmp_path / "d", workers=1)
    fill(tmp_path / "d", "train-000000.tar")
    with pytest.raises(UserError, match=r"train-000000\.tar is no shard of this build"):
        build_dataset(tau_options, tmp_path / "d", workers=1)
    assert (tmp_path / "d/train-000000.tar").read_text() == "years of work: train-000000.tar"


def test_links_are_not_followed_out_of_a_dataset(
    tau_options: BuildOptions, dataset: Path, tmp_path: Path
) -> None:
    theirs = fill(tmp_path / "theirs", "plan.json", "photo.tar.json", "one.tmp")
    (dataset / ".build").symlink_to(theirs)
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"\.build in it is a link"):
            build_dataset(tau_options, dataset, workers=1, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_overwriting_waits_for_the_lock_before_it_deletes(
    tau_options: BuildOptions,
    tau_dataset: Path,
    hashes: Hashes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "d"
    monkeypatch.setattr("shards.files.locks.PATIENCE", 0.1)
    at_work, go_on = threading.Event(), threading.Event()
    finish, look = shards.build.dataset._finish, shards.build.dataset._refuse_small_disk
    looked: list[Path] = []

    def looking(folder: Path, plan: Plan) -> None:
        looked.append(folder)
        look(folder, plan)

    monkeypatch.setattr(shards.build.dataset, "_refuse_small_disk", looking)

    def slow(*arguments: object) -> object:
        at_work.set()
        assert go_on.wait(600)
        return finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards.build.dataset, "_finish", slow)
    first = threading.Thread(
        target=build_dataset, args=(tau_options, out), kwargs={"workers": 1, "overwrite": True}
    )
    first.start()
    assert at_work.wait(600)
    before = snapshot(out)
    assert any(name.endswith(".tar") for name in before)
    with pytest.raises(UserError, match=r"another build is at work there \(process \d+ on "):
        build_dataset(replace(tau_options, seed=3), out, workers=1, overwrite=True)
    assert snapshot(out) == before
    assert looked == [out], "files that the first one deletes are not counted by the second"
    go_on.set()
    first.join()
    assert hashes(out) == hashes(tau_dataset)


@pytest.mark.slow
def test_two_builds_that_overwrite_at_the_same_time(scenes_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    words = [sys.executable, "-m", "shards", "build", "tau2022", "--source", str(scenes_source)]
    words += ["--out", str(out), "--workers", "1", "--overwrite"]
    for _ in range(4):
        both = [subprocess.Popen([*words, "--seed", seed], stderr=subprocess.PIPE) for seed in "12"]
        said = [process.communicate(timeout=600)[1].decode() for process in both]
        ends = [process.returncode for process in both]
        assert 0 in ends, said
        for end, text in zip(ends, said, strict=True):
            assert end == 0 or (end == 2 and "another build is at work there" in text), text
        assert verify(out) == []
        assert not (out / ".build").exists()


def test_an_overwrite_that_was_interrupted(
    tau_options: BuildOptions,
    tau_dataset: Path,
    dataset: Path,
    hashes: Hashes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shards.build.output_folder

    def die(folder: Path, names: list[str]) -> None:
        remove(folder, names[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.build.output_folder, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(replace(tau_options, seed=9), dataset, workers=1, overwrite=True)
    build_dataset(tau_options, dataset, workers=1)
    assert hashes(dataset) == hashes(tau_dataset)


@pytest.mark.parametrize("name", ["meta.csv", "audio/one.wav", ".download/photo.jpg"])
def test_downloads_and_made_up_clips_go_into_new_folders(name: str, tmp_path: Path) -> None:
    fill(tmp_path, name)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        synthesise(tmp_path, 200)
    with pytest.raises(UserError, match="is not a download and not empty"):
        download(DATASETS["tau2022"], [], tmp_path)
    assert snapshot(tmp_path) == before


def test_the_cache_removes_shards_of_its_own_only(tmp_path: Path) -> None:
    fill(tmp_path, "backups/home.tar", "backups/dataset.json")
    cache = Cache(tmp_path, limit=10)
    assert not cache._evict_one(tmp_path / "other")
    assert (tmp_path / "backups/home.tar").is_file()


def test_only_regular_files_are_removed(tmp_path: Path) -> None:
    fill(tmp_path / "theirs", "state.json")
    ours = fill(
        tmp_path / "ours", "c/step-1/state.json", "c/step-1/notes.txt", "c/step-2/state.json"
    )
    (ours / "c/step-3").symlink_to(tmp_path / "theirs")
    (ours / "c/step-2/state.json").unlink()
    (ours / "c/step-2/state.json").symlink_to(tmp_path / "theirs/state.json")
    remove(ours, ["c/step-*/state.json", "none/*"])
    assert snapshot(ours).keys() == {
        *("c", "c/step-1", "c/step-1/notes.txt", "c/step-2", "c/step-2/state.json", "c/step-3")
    }
    assert (tmp_path / "theirs/state.json").is_file()


@pytest.mark.parametrize("left", ["old", "new"])
def test_what_a_killed_process_has_left_of_a_replacement(left: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fill(tmp_path / f".model.{left}-77", "weights", "notes.txt")
    if left == "new":
        fill(folder, "weights")
    with pytest.raises(KeyError), replaced_folder(folder, ["weights"]):
        raise KeyError
    # What had been moved away is back, and nothing of the user's is gone.
    assert (folder / "weights").is_file()
    assert (folder / "notes.txt").is_file()
    with replaced_folder(folder, ["weights"]) as new:
        (new / "weights").write_text("new")
    assert snapshot(tmp_path).keys() == {"model", "model/notes.txt", "model/weights"}
    assert (folder / "weights").read_text() == "new"


def test_one_line_at_the_command_line(
    scenes_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, "file")
    build = ["build", "tau2022", "--source", str(scenes_source), "--out"]
    for out, why in (
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file/below", "cannot be written"),
        (tmp_path / ("x" * 300), "choose a shorter name"),
        (Path("/dev/null"), "is a file; name a folder"),
    ):
        for command in ([*build, str(out)], ["synth", "--clips", "200", "--out", str(out)]):
            with pytest.raises(UserError, match=why) as caught:
                main(command)
            assert str(caught.value).startswith(f"--out {out}")


@pytest.mark.parametrize("command", ["synth", "build"])
def test_a_disk_that_is_full(command: str, scenes_source: Path, tmp_path: Path) -> None:
    """Files may grow to 60 kB and no further: a clip has more."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    out = tmp_path / "out"
    words = {
        "synth": ["synth", "--clips", "200"],
        "build": ["build", "tau2022", "--source", str(scenes_source)],
    }[command]
    words = [sys.executable, "-m", "shards", *words, "--out", str(out), "--workers", "1"]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, timeout=600)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cpprune: error: --out {out}: cannot be written (File too large); ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    if command == "synth":
        assert snapshot(out) == {}


def test_only_names_of_ours_are_taken_for_what_a_killed_process_left(tmp_path: Path) -> None:
    hers = tmp_path / ".model.old-keep"
    fill(hers, "model.json", "notes")
    before = snapshot(hers)
    with replaced_folder(tmp_path / "model", ["model.json"]) as new:
        (new / "model.json").write_text("{}")
    assert snapshot(hers) == before
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.json"]


@pytest.mark.parametrize("name", [".", "..", "sub/..", "/"])
def test_a_folder_that_is_replaced_has_a_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = Kind(name="a submission", parts=(), made=lambda folder: False, replaced=True)
    with pytest.raises(UserError, match=f"^--out {Path(name)} would be replaced as a whole"):
        claim(Path(name), kind, "--out")
    claim(Path(), replace(kind, replaced=False), "--out")


@pytest.mark.parametrize("which", ["new", "old"])
def test_nothing_is_left_if_a_folder_cannot_be_renamed(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    fill(folder, "weights", "notes.txt")
    before = snapshot(tmp_path)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if f".{which}-" in f"{path} {target}" and path.name != f".model.old-{os.getpid()}":
            raise OSError(errno.EBUSY, "busy")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="busy"), replaced_folder(folder, ["weights"]) as new:
        (new / "weights").write_text("new")
    assert snapshot(tmp_path) == before
