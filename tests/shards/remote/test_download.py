"""A dataset fetched from a web server, in the layout of TAU's own archives."""

import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from web_server import Server

from shards import UserError
from shards.cli.main import main
from shards.remote.download import DATASETS, RemoteDataset, download

LISTS = Path(__file__).parents[4] / "shared/data/tau2022"


@pytest.fixture
def small(server: Server, scenes_source: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteDataset:
    """The made-up clips as two archives on the server, and a training subset of three clips."""
    files = sorted(path for path in scenes_source.rglob("*") if path.is_file())
    audio = [path for path in files if path.suffix == ".wav"]
    for name, held in (("meta.zip", [p for p in files if p not in audio]), ("audio.1.zip", audio)):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as zipped:
            for path in held:
                zipped.write(path, f"top/{path.relative_to(scenes_source)}")
        server.files[name] = packed.getvalue()
    small = replace(
        DATASETS["tau2022"],
        md5={name: hashlib.md5(data).hexdigest() for name, data in server.files.items()},
        top="top",
        bytes=sum(path.stat().st_size for path in files),
        lists={5: 3},
    )
    server.files["split5.csv"] = b"filename\tscene_label\n" + b"audio/x.wav\tbus\n" * 3
    monkeypatch.setitem(DATASETS, "tau2022", small)
    return small


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".download" not in path.parts
    }


def test_from_the_server_to_a_dataset(
    small: RemoteDataset,
    server: Server,
    scenes_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tau"
    command = ["download", "tau2022", "--out", str(out), "--mirror", f"{server.url}/"]
    assert main([*command, "--splits", "5", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fetched"] == ["meta.zip", "audio.1.zip", "split5.csv"]
    assert "non-commercial" in printed.err
    assert tree(out) == {**tree(scenes_source), "split5.csv": server.files["split5.csv"]}
    work = out / ".download"
    assert sorted(path.name for path in work.iterdir()) == [
        "audio.1.zip.json",
        "lock",
        "meta.zip.json",
    ]

    server.asked.clear()
    assert main([*command, "--splits", "5"]) == 0
    assert "0 of 3 files were fetched" in capsys.readouterr().out
    assert server.asked == []
    build = [
        "build",
        "tau2022",
        "--source",
        str(out),
        "--out",
        str(tmp_path / "d"),
        "--workers",
        "1",
    ]
    assert main(build) == 0


def test_what_was_lost_is_fetched_again(
    small: RemoteDataset, server: Server, scenes_source: Path, tmp_path: Path
) -> None:
    files = small.files([5], server.url)
    assert len(download(small, files, tmp_path)) == 3
    next((tmp_path / "audio").iterdir()).unlink()
    (tmp_path / "split5.csv").write_bytes(b"filename\n")
    assert download(small, files, tmp_path) == ["audio.1.zip", "split5.csv"]
    assert tree(tmp_path) == {**tree(scenes_source), "split5.csv": server.files["split5.csv"]}


def test_interrupted_and_started_again(
    small: RemoteDataset, server: Server, scenes_source: Path, tmp_path: Path
) -> None:
    # The first answer is the one that only its length is read of.
    server.cuts["audio.1.zip"] = [0, 1_000_000, 0, 0, 0]
    with pytest.raises(UserError, match="it resumes where it broke off"):
        download(small, small.files([], server.url), tmp_path)
    assert (tmp_path / ".download/audio.1.zip.part").stat().st_size == 1_000_000
    server.cuts.clear()
    server.asked.clear()
    assert download(small, small.files([], server.url), tmp_path) == ["audio.1.zip"]
    assert server.asked == [("audio.1.zip", 0), ("audio.1.zip", 1_000_000)]
    assert tree(tmp_path) == tree(scenes_source)


def test_another_md5_is_fetched_again_once_and_then_named(
    small: RemoteDataset, server: Server, tmp_path: Path
) -> None:
    good = server.files["meta.zip"]
    server.files["meta.zip"] = bad = good[:-1] + b"!"
    with pytest.raises(UserError) as caught:
        download(small, small.files([], server.url), tmp_path)
    text = str(caught.value)
    assert f"{server.url}/meta.zip" in text
    assert (
        f"expected md5 {hashlib.md5(good).hexdigest()}, found {hashlib.md5(bad).hexdigest()}"
        in text
    )
    assert server.asked.count(("meta.zip", 0)) == 3
    assert tree(tmp_path) == {}

    # What an earlier start left may be damaged, and the server's file good.
    server.files["meta.zip"] = good
    (tmp_path / ".download/meta.zip.part").write_bytes(b"?" * 100)
    assert download(small, small.files([], server.url), tmp_path) == ["meta.zip", "audio.1.zip"]


def test_a_list_of_another_length(small: RemoteDataset, server: Server, tmp_path: Path) -> None:
    server.files["split5.csv"] += b"audio/y.wav\tbus\n"
    with pytest.raises(UserError, match=r"split5\.csv .* expected 4 lines, found 5"):
        download(small, small.files([5], server.url), tmp_path)


def test_the_disk_is_looked_at_before_anything_is_fetched(
    small: RemoteDataset, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small.files([], server.url)
    usage = shutil.disk_usage(tmp_path)
    largest = len(server.files["audio.1.zip"])

    def with_free(number: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=number))

    with_free(small.bytes + largest - 1)
    with pytest.raises(UserError, match="name another place"):
        download(small, files, tmp_path)
    assert tree(tmp_path) == {}
    assert [path.name for path in (tmp_path / ".download").iterdir()] == ["lock"]
    # What is there is not needed again: an unpacked file, and a part of an archive.
    (tmp_path / "README.html").write_bytes(b"x" * 50_000)
    (tmp_path / ".download/audio.1.zip.part").write_bytes(server.files["audio.1.zip"][:1_000_000])
    with_free(small.bytes + largest - 1_050_001)
    with pytest.raises(UserError, match="name another place"):
        download(small, files, tmp_path)
    with_free(small.bytes + largest - 1_050_000)
    assert len(download(small, files, tmp_path)) == 2


def test_an_archive_with_a_way_out(small: RemoteDataset, server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("top/../../evil.txt", "x")
    server.files["meta.zip"] = packed.getvalue()
    evil = replace(small, md5={"meta.zip": hashlib.md5(packed.getvalue()).hexdigest()})
    out = tmp_path / "deep/out"
    with pytest.raises(UserError, match="leads out of the folder"):
        download(evil, evil.files([], server.url), out)
    assert not list(tmp_path.rglob("evil.txt"))


def test_mistakes(small: RemoteDataset, server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--splits 7: there are subsets of 5 percent"):
        small.files([7], None)
    with pytest.raises(UserError, match="--mirror file:///x: give a URL"):
        small.files([], "file:///x")
    with pytest.raises(UserError):
        main(["download", "tau2022", "--out", str(tmp_path), "--splits", "five"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; name a folder"):
        download(small, small.files([], server.url), tmp_path / "file")
    del server.files["audio.1.zip"]
    with pytest.raises(UserError, match=r"audio\.1\.zip: the server says 404"):
        download(small, small.files([], server.url), tmp_path / "new")
    assert tree(tmp_path).keys() == {"file"}


def test_the_published_files() -> None:
    tau = DATASETS["tau2022"]
    files = tau.files([5, 100], None)
    names = [file.name for file in files]
    stem = "TAU-urban-acoustic-scenes-2022-mobile-development"
    assert set(names) == {
        *(f"{stem}.{part}.zip" for part in ["doc", "meta", *(f"audio.{i}" for i in range(1, 17))]),
        "split5.csv",
        "split100.csv",
    }
    assert len({file.md5 for file in files[:18]}) == 18
    assert all(len(file.md5 or "") == 32 for file in files[:18])
    assert files[3].url == f"https://zenodo.org/records/6337421/files/{stem}.audio.2.zip?download=1"
    assert files[3].md5 == "e821abda49b069248bb75eab39df7575"


@pytest.mark.skipif(not LISTS.is_dir(), reason="the lists of TAU 2022 Mobile are not here")
def test_the_real_list_has_the_length_that_is_expected() -> None:
    split5 = DATASETS["tau2022"].files([5], None)[-1]
    assert split5.fault(LISTS / "split5.csv") is None
    assert split5.fault(LISTS / "test.csv") is not None
