"""MNIST digits from IDX files, plain or gzip, by their usual names."""

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.manifest import sha256_of_file
from shards.sources.registry import source
from shards.sources.source import Item, Source, folder_of

if TYPE_CHECKING:
    from shards.build.options import BuildOptions

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "t10k": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SPLIT_SEED = 1
# Bytes of a file's images, unpacked; EMNIST, the largest of the kind, has 0.64e9. And what a byte of a
# .gz unpacks to.
MOST_BYTES = 1 << 30
MOST_PACKED = 1100


@source("mnist", help="a folder of IDX files")
def _from_options(options: "BuildOptions") -> Source:
    return read(folder_of(options))


def read(root: Path) -> Source:
    """Reads the digits and splits the training ones.

    A sixth of the training digits (10,000 of 60,000) is the validation split: the last ones of
    `torch.randperm` with a generator seeded with 1, as `torch.utils.data.random_split` divides.

    Raises:
        UserError: if a file is missing, damaged, or images and labels differ in number.
    """
    import torch

    lists: dict[str, str] = {}
    items: list[Item] = []
    images: list[NDArray[np.uint8]] = []
    for part, (image_name, label_name) in _FILES.items():
        digits = _read_idx(root, image_name, 3, lists)
        labels = _read_idx(root, label_name, 1, lists)
        if len(digits) != len(labels):
            raise UserError(f"{root}: {len(digits)} {part} images but {len(labels)} labels")
        if len(labels) and labels.max() > 9:
            raise UserError(f"{root / label_name}: a label is {labels.max()}; digits are 0 to 9")
        splits = ["test"] * len(labels)
        if part == "train":
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
            validation = round(len(labels) / 6)
            for place, index in enumerate(order.tolist()):
                splits[index] = "train" if place < len(labels) - validation else "val"
        for index, (label, split) in enumerate(zip(labels.tolist(), splits, strict=True)):
            name = f"{part}-{index:08d}"
            items.append(Item(name, "", label, split, name))
        images.append(digits[:, None])
    if images[0].shape[1:] != images[1].shape[1:]:
        raise UserError(f"{root}: train and t10k images differ in size")
    return Source(
        kind="image",
        classes=tuple(str(digit) for digit in range(10)),
        groups=(),
        unit="image",
        items=items,
        one_clip=True,
        fixed_classes=True,
        lists=lists,
        images=np.concatenate(images),
    )


def _read_idx(root: Path, name: str, axes: int, lists: dict[str, str]) -> NDArray[np.uint8]:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            break
    else:
        raise UserError(f"{root} has neither {name} nor {name}.gz")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} is none of MNIST's files: it has more than {MOST_BYTES:,} bytes")
    lists[path.name] = sha256_of_file(path)
    size = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(size)
            if head[:4] != bytes((0, 0, 8, axes)) or len(head) < size:
                raise UserError(f"{path} is not an IDX file of bytes with {axes} axes")
            shape = tuple(int(length) for length in np.frombuffer(head[4:], dtype=">u4"))
            count = math.prod(shape)
            if count > MOST_BYTES or count > MOST_PACKED * path.stat().st_size:
                raise UserError(
                    f"{path} is damaged, or none of MNIST's kind: its header says {shape}, which its "
                    f"{path.stat().st_size:,} bytes do not hold, or which is more than {MOST_BYTES:,}"
                )
            # One byte more than there should be, so that there is none, and the checksum is compared.
            data = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if len(data) != count:
        raise UserError(f"{path} is cut short or damaged: its header says {shape}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
