"""Archives that are not to be trusted."""

import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from shards import UserError
from shards.remote.unzip import unpack


def archive_of(folder: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path = folder / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for member, data in members:
            zipped.writestr(member, data)
    return path


def test_the_top_folder_is_left_out(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path, ("top/audio/x.wav", b"abc"), ("audio/y.wav", b"de"), ("top/", b"")
    )
    out = tmp_path / "out"
    out.mkdir()
    assert unpack(archive, out, "top") == {"audio/x.wav": 3, "audio/y.wav": 2}
    assert (out / "audio/x.wav").read_bytes() == b"abc"
    assert sorted(path.name for path in out.iterdir()) == ["audio"]


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil", "leads out of the folder"),
        ("top/../../evil", "leads out of the folder"),
        ("/tmp/evil", "leads out of the folder"),
        ("..\\evil", "leads out of the folder"),
        (".", "is not a name"),
        (link("shortcut"), "is a link or a device"),
    ],
)
def test_nothing_leaves_the_folder(
    tmp_path: Path, member: str | zipfile.ZipInfo, reason: str
) -> None:
    archive = archive_of(tmp_path, ("good.txt", b"good"), (member, b"/etc/passwd"))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=reason) as caught:
        unpack(archive, out, "top")
    assert "nothing was unpacked" in str(caught.value)
    assert list(out.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]


def test_a_bomb_is_refused_before_it_bursts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, ("zeros", bytes(50_000_000)))
    assert archive.stat().st_size < 100_000
    out = tmp_path / "out"
    out.mkdir()
    usage = shutil.disk_usage(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=49_999_999))
    with pytest.raises(UserError, match=r"unpacks to 0\.1 GB and 0\.0 GB are free"):
        unpack(archive, out, "top")
    assert list(out.iterdir()) == []
    # What it would overwrite is not needed again.
    (out / "zeros").write_bytes(b"1")
    assert unpack(archive, out, "top") == {"zeros": 50_000_000}


def test_a_member_that_is_longer_than_it_says(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, ("zeros", bytes(1_000_000)))
    data = archive.read_bytes()
    true, false = (size.to_bytes(4, "little") for size in (1_000_000, 10))
    archive.write_bytes(data.replace(true, false))
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path, "top")
    assert (tmp_path / "zeros").stat().st_size <= 10


def test_damage(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, ("noise", os.urandom(10_000)))
    data = bytearray(archive.read_bytes())
    data[5000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path, "top")
    archive.write_bytes(b"<html>")
    with pytest.raises(UserError, match="cannot be unpacked: File is not a zip file"):
        unpack(archive, tmp_path, "top")
