"""Files that seem to have 64 GiB, being one hole, are named at once: nobody reads them to the end."""

import os
import shutil
from pathlib import Path

import pytest

from cpprune.cli.main import main


@pytest.fixture
def copy(tau_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(tau_dataset, tmp_path / "d")
    return tmp_path / "d"


@pytest.fixture(autouse=True)
def no_long_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that hashes a huge file fails, rather than taking minutes."""
    import hashlib

    digest = hashlib.file_digest

    def bounded(file, *how):  # type: ignore[no-untyped-def]
        assert os.fstat(file.fileno()).st_size < 1 << 30
        return digest(file, *how)

    monkeypatch.setattr(hashlib, "file_digest", bounded)


@pytest.mark.parametrize("name", ["index.parquet", "train-000000.tar", "dataset.json"])
def test_a_huge_file_of_a_dataset(
    copy: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    os.truncate(copy / name, 1 << 36)
    assert main(["shards", "verify", str(copy)]) in (1, 2)
    out, err = capsys.readouterr()
    assert name in out + err
    assert "Traceback" not in err
    if name != "train-000000.tar":
        assert main(["shards", "info", str(copy)]) == 2
        assert name in capsys.readouterr().err


def test_a_huge_file_of_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "train-images-idx3-ubyte"
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 36)
    build = ["shards", "build", "mnist", "--source", str(tmp_path), "--out", str(tmp_path / "d")]
    assert main(build) == 2
    assert name in capsys.readouterr().err
