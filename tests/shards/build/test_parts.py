"""A build in parts, as several machines would do it at the same time."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import shards.build.dataset
import shards.build.spool
from shards import UserError
from shards.build.dataset import build_dataset, build_part
from shards.build.plan import BuildOptions
from shards.cli.main import main

Hashes = Callable[[Path], dict[str, str]]


def test_parts_joined_are_the_whole(
    tau_options: BuildOptions,
    tau_dataset: Path,
    hashes: Hashes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "d"
    made = [set[str]() for _ in range(3)]
    for number in (2, 3, 1):
        before = set(out.glob("*.tar"))
        assert build_part(tau_options, out, number, 3, workers=1) is False
        made[number - 1] = {path.name for path in set(out.glob("*.tar")) - before}
    names = sorted(path.name for path in tau_dataset.glob("*.tar"))
    assert sorted(name for part in made for name in part) == names
    assert [len(part) for part in made] == [3, 2, 2]
    assert not (out / "dataset.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("shards.build.shard_job.write_record", None)  # nothing is left to write
        build_dataset(tau_options, out, workers=1)
    assert hashes(out) == hashes(tau_dataset)
    assert build_part(tau_options, out, 1, 3, workers=1) is True


def test_joining_makes_what_a_part_has_left_out(
    tau_options: BuildOptions, tau_dataset: Path, hashes: Hashes, tmp_path: Path
) -> None:
    build_part(tau_options, tmp_path / "d", 1, 2, workers=1)
    build_dataset(tau_options, tmp_path / "d", workers=1)
    assert hashes(tmp_path / "d") == hashes(tau_dataset)


def test_parts_of_long_recordings_decode_each_once(
    tmp_path: Path,
    make_audio: Callable[..., Path],
    hashes: Hashes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("owl", "wren"):
        for i in range(4):
            make_audio(tmp_path / "s" / name / f"{i}.ogg", seconds=4.3 + i, rate=11025, seed=i)
    options = BuildOptions(kind="folder", source=tmp_path / "s", sample_rate=8000, shard_size=20)
    build_dataset(options, tmp_path / "whole", workers=1)
    monkeypatch.setattr(shards.build.spool, "CLIPS_PER_PART", 10)
    blocks, loaded = shards.build.spool.blocks, []

    def counted(file: str, rate: int) -> object:
        loaded.append(file)
        return blocks(file, rate)

    monkeypatch.setattr(shards.build.spool, "blocks", counted)
    build_part(options, tmp_path / "d", 1, 2, workers=1)
    assert 0 < len(loaded) < 8
    build_part(options, tmp_path / "d", 2, 2, workers=1)
    build_dataset(options, tmp_path / "d", workers=1)
    assert len(loaded) == len(set(loaded)) == 8
    assert hashes(tmp_path / "d") == hashes(tmp_path / "whole")


def test_parts_run_side_by_side_but_not_twice_nor_beside_the_join(
    tau_options: BuildOptions,
    tau_dataset: Path,
    hashes: Hashes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "d"
    monkeypatch.setattr("shards.files.locks.PATIENCE", 0.1)
    at_work, go_on = threading.Event(), threading.Event()
    make = shards.build.dataset._make_shards

    def slow(*arguments: object, **settings: object) -> object:
        at_work.set()
        assert go_on.wait(600)
        return make(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(shards.build.dataset, "_make_shards", slow)
    other = threading.Thread(
        target=build_part, args=(tau_options, out, 1, 2), kwargs={"workers": 1}
    )
    other.start()
    assert at_work.wait(600)
    monkeypatch.setattr(shards.build.dataset, "_make_shards", make)
    for again in (
        lambda: build_part(tau_options, out, 1, 2, workers=1),
        lambda: build_dataset(tau_options, out, workers=1),
    ):
        with pytest.raises(UserError, match="another build is at work there"):
            again()
    build_part(tau_options, out, 2, 2, workers=1)
    with pytest.raises(UserError, match="--seed was 0, is 5"):
        build_part(replace(tau_options, seed=5), out, 2, 2, workers=1)
    go_on.set()
    other.join()
    build_dataset(tau_options, out, workers=1)
    assert hashes(out) == hashes(tau_dataset)


def test_a_part_at_the_command_line(
    scenes_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build", "tau2022", "--source", str(scenes_source), "--out", str(tmp_path / "d")]
    build += ["--workers", "1"]
    assert main([*build, "--part", "1", "--of", "2"]) == 0
    assert "part 1 of 2 is done; after all parts" in capsys.readouterr().out
    for wrong, why in (
        (["--part", "3", "--of", "2"], "use --part 1 to --part 2"),
        (["--part", "0", "--of", "2"], "use --part 1 to --part 2"),
        (["--part", "1"], "go together"),
        (["--of", "2"], "go together"),
        (["--part", "1", "--of", "2", "--overwrite"], "delete"),
    ):
        with pytest.raises(UserError, match=why):
            main([*build, *wrong])
    assert main(build) == 0
    capsys.readouterr()
    assert main([*build, "--part", "2", "--of", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True
