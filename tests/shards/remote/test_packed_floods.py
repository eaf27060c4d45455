"""Small packed files that hold more than fits anywhere."""

import gzip
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shards import UserError
from shards.remote.unzip import unpack
from shards.sources import mnist

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
ZEROS = gzip.compress(bytes(50_000_000))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte more than what is in use; without it a flood would take five."""
    import torch

    assert torch  # which alone takes more
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def head(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((10, 28, 28), r"cut short or damaged: its header says \(10, 28, 28\)"),
        (
            (6_000_000, 28, 28),
            r"its header says \(6000000, 28, 28\), which its .* bytes do not hold",
        ),
        ((2**32 - 1, 2**32 - 1, 2**32 - 1), "do not hold"),
    ],
)
def test_a_gzip_file_that_does_not_end(
    shape: tuple[int, ...], why: str, tmp_path: Path, little_memory: None
) -> None:
    """5 GB of zeros behind a header, in 5 MB."""
    with (tmp_path / f"{NAMES[0]}.gz").open("wb") as file:
        file.write(gzip.compress(head(*shape)))
        for _ in range(100):
            file.write(ZEROS)
    with pytest.raises(UserError, match=rf"{NAMES[0]}\.gz is .*{why}"):
        mnist.read(tmp_path)


def test_the_checksum_of_a_gzip_file_is_compared(
    tmp_path: Path, write_mnist: Callable[..., None]
) -> None:
    images, labels = np.zeros((6, 28, 28), np.uint8), np.zeros(6, np.uint8)
    for part in ("train", "t10k"):
        write_mnist(tmp_path, part, images, labels)
    assert len(mnist.read(tmp_path).items) == 12
    path = tmp_path / f"{NAMES[0]}.gz"
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged: CRC check failed"):
        mnist.read(tmp_path)


def test_files_without_images(tmp_path: Path, write_mnist: Callable[..., None]) -> None:
    for part in ("train", "t10k"):
        write_mnist(tmp_path, part, np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8))
    assert mnist.read(tmp_path).items == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_holds_a_name_again_and_again(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("top/zeros", "zeros", "top/zeros"):
            zipped.writestr(name, bytes(1_000_000))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"'zeros' occurs twice; nothing was unpacked"):
        unpack(archive, tmp_path / "out", "top")
    assert list((tmp_path / "out").iterdir()) == []
