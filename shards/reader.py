"""Reading samples by their row, with positioned reads straight into the batch."""

import io
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.index import contradictions, open_index
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    Shard,
    max_index_bytes,
    read_manifest,
    sha256_of_file,
)
from shards.order import Ids
from shards.remote.cache import Cache, default_root
from shards.remote.fetch import is_remote
from shards.remote.folder import RemoteFolder, open_remote
from shards.shard_files import LocalFolder, OpenShards, max_open_shards, read_fully
from shards.split import Split
from shards.suggest import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

Samples = NDArray[np.integer]  # int16 or uint8, by the dataset's kind


class Dataset:
    """Dataset opened for reading; made by `open_dataset`.

    It works in forked workers and can be pickled to spawned ones: each process opens its own file
    descriptors at first use.

    Attributes:
        path: the folder or URL.
        manifest: contents of `dataset.json`.
        kind: "audio" or "image".
        classes: the class names; a label is an index into them.
        sample_rate: in Hz; None for images.
        shape: shape of one sample, for example (32000,) or (1, 28, 28).
        dtype: int16 or uint8.
        groups: names of the metadata columns beside the recording, such as "device".
        splits: number of samples of each split.
        fingerprint: SHA-256 of the manifest, which changes with any byte of the dataset.
        labels: int64 [n], class index of each row.
    """

    def __init__(self, folder: LocalFolder | RemoteFolder, manifest: Manifest) -> None:
        self.folder = folder
        self.path: Path | str = folder.location
        self.manifest = manifest
        self.kind = manifest.kind
        self.classes = manifest.classes
        self.sample_rate = manifest.sample_rate
        self.shape = manifest.shape
        self.dtype = np.dtype(manifest.dtype)
        self.groups = manifest.groups
        self.splits: dict[str, int] = {
            name: int(manifest.splits[name]["count"]) for name in SPLITS if name in manifest.splits
        }
        self.fingerprint = manifest.sha256
        texts = ("recording", *self.groups)
        numbers = ("shard", "offset", "size", "crc32", "label")
        path = folder.files / INDEX_NAME
        index = open_index(path, manifest, ("key", *numbers, *texts), encoded=texts)
        if wrong := contradictions(index, manifest):
            raise UserError(
                f"{path} cannot be used: its {wrong[0]} contradict {MANIFEST_NAME}; copy the dataset "
                "again from where it was built"
            )
        self._texts: dict[str, pa.Array] = index.texts
        self._shard = index.numbers["shard"]
        self._offset = index.numbers["offset"]
        self._size = index.numbers["size"]
        self._crc32 = index.numbers["crc32"]
        self.labels: Ids = index.numbers["label"].astype(np.int64)
        self._checked = np.zeros(len(self._shard), dtype=np.bool_)
        self._open = OpenShards(folder, manifest.shards)

    def __len__(self) -> int:
        return len(self._shard)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {self.splits})"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.folder, self.fingerprint)

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def close(self) -> None:
        """Closes the shards and stops prefetching; the next `fetch` opens them again."""
        self.folder.close()
        self._open.close_all()

    def split(self, name: str) -> Split:
        """Returns one split.

        Raises:
            UserError: there is no split of that name.
        """
        if name not in self.splits:
            known = ", ".join(self.splits) or "none"
            hint = did_you_mean(name, self.splits)
            raise UserError(f"{self.path} has no split {name!r}; it has {known}{hint}")
        first = 0
        for other, count in self.splits.items():
            if other == name:
                break
            first += count
        return Split(self, name, np.arange(first, first + self.splits[name], dtype=np.int64))

    def texts(self, column: str, first: int = 0, count: int | None = None) -> NDArray[np.str_]:
        """Returns a text column ("key", "recording" or a group) of a range of rows: a str array.

        Raises:
            UserError: there is no such column.
        """
        if column not in self._texts:
            known, hint = ", ".join(self._texts), did_you_mean(column, self._texts)
            raise UserError(f"{self.path} has no column {column!r}; it has {known}{hint}")
        part = self._texts[column].slice(first, count)
        if column == "key":
            return np.array(part.to_pylist(), dtype=np.str_)
        if len(part.dictionary) == 0:
            return np.array([], dtype=np.str_)
        names = np.array(part.dictionary.to_pylist(), dtype=np.str_)
        chosen: NDArray[np.str_] = names[part.indices.to_numpy()]
        return chosen

    def key(self, row: int) -> str:
        """Returns the key of a row."""
        return str(self._texts["key"][row].as_py())

    def prefetch(self, ids: Ids) -> None:
        """Announces the rows that will be read next, in this order.

        A remote dataset starts to fetch their shards in the background.
        """
        self.folder.prefetch(self._shards_of(ids))

    def _shards_of(self, ids: Ids) -> Iterator[Shard]:
        shards, first = np.unique(self._shard[ids], return_index=True)
        for shard in shards[np.argsort(first)]:
            yield self.manifest.shards[shard]

    def by_shard(self, ids: Ids) -> list[slice]:
        """Returns the slices of ascending rows that lie in one shard each."""
        ends = np.flatnonzero(np.diff(self._shard[ids])) + 1
        return [slice(a, b) for a, b in zip([0, *ends], [*ends, len(ids)], strict=True) if a < b]

    def fetch_shard(self, ids: Ids, out: Samples | None = None) -> Samples:
        """Reads samples of a single shard, by ascending rows, and closes the shard.

        Threads may call it at the same time for different shards.

        Returns:
            [n, *shape] of `dtype`; `out` if it is given.

        Raises:
            UserError: see `fetch`.
        """
        if out is None:
            out = np.empty((len(ids), *self.shape), dtype=self.dtype)
        try:
            self._fetch(ids, np.arange(len(ids)), out)
        finally:
            self._open.close(int(self._shard[ids[0]]))
        return out

    def fetch(
        self, ids: Sequence[int] | NDArray[np.integer], out: Samples | None = None
    ) -> Samples:
        """Reads samples by their row in the dataset.

        Samples are read in the order in which they lie on disk. The checksum of a sample is verified
        the first time that this process reads it.

        Args:
            ids: n rows, in any order; repetitions are allowed.
            out: C-contiguous [n, *shape] of `dtype` to write to; a new array if None.

        Returns:
            [n, *shape] of `dtype`, in the order of `ids`.

        Raises:
            UserError: an id is out of range, a shard is missing, or a sample is damaged.
        """
        rows = np.asarray(ids, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            wrong = rows[(rows < 0) | (rows >= len(self))][0]
            raise UserError(f"{self.path} has no row {wrong}: rows go from 0 to {len(self) - 1}")
        if out is None:
            out = np.empty((len(rows), *self.shape), dtype=self.dtype)
        assert out.shape == (len(rows), *self.shape)
        assert out.dtype == self.dtype
        assert out.flags.c_contiguous
        if len(rows) == 0:
            return out
        # Rows are numbered in the order of (shard, offset).
        order = np.argsort(rows, kind="stable")
        limit = 1 if self.folder.one_by_one else max_open_shards()
        if len(self.manifest.shards) <= limit:  # the usual case: nothing has to be closed
            self._fetch(rows, order, out)
            return out
        parts = self.by_shard(rows[order])
        for first in range(0, len(parts), limit):
            group = parts[first : first + limit]
            first_rows = rows[order[[part.start for part in group]]]
            self._open.make_room(self._shard[first_rows].tolist(), limit)
            self._fetch(rows, order[group[0].start : group[-1].stop], out)
        if self.folder.one_by_one:
            self._open.close_all()
        return out

    def _fetch(self, rows: Ids, order: Ids, out: Samples) -> None:
        read = self._decode if self.manifest.encoding == "flac" else self._read
        read(rows, order, out)

    def _read(self, rows: Ids, order: Ids, out: Samples) -> None:
        visited = rows[order]
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        width = view.nbytes // len(rows)
        header = bytearray(int(self._size[visited[0]]) - width)
        total = len(header) + width
        shards = self._shard[visited]
        files = {shard: self._open.file(shard) for shard in np.unique(shards).tolist()}
        for position, row, shard, offset, first in zip(
            order.tolist(),
            visited.tolist(),
            shards.tolist(),
            self._offset[visited].tolist(),
            (~self._checked[visited]).tolist(),
            strict=True,
        ):
            clip = view[position * width : position * width + width]
            try:
                got = os.preadv(files[shard], (header, clip), offset)
                if got != total and not read_fully(files[shard], (header, clip), offset, got):
                    raise self._damaged(row, "the shard ends before it")
            except OSError as error:
                raise self._unreadable(row, error) from error
            if first:
                self._check(row, zlib.crc32(clip, zlib.crc32(header)))

    def _decode(self, rows: Ids, order: Ids, out: Samples) -> None:
        import soundfile

        for position in order.tolist():
            row = int(rows[position])
            size = int(self._size[row])
            payload = bytearray(size)
            file = self._open.file(int(self._shard[row]))
            try:
                if not read_fully(file, (payload,), int(self._offset[row])):
                    raise self._damaged(row, "the shard ends before it")
            except OSError as error:
                raise self._unreadable(row, error) from error
            if not self._checked[row]:
                self._check(row, zlib.crc32(payload))
            try:
                samples = soundfile.read(io.BytesIO(payload), dtype="int16")[0]
            except soundfile.LibsndfileError as error:
                raise self._damaged(row, str(error)) from error
            if samples.shape != self.shape:
                raise self._damaged(row, f"it has the shape {samples.shape}")
            out[position] = samples

    def _check(self, row: int, crc32: int) -> None:
        if crc32 != self._crc32[row]:
            raise self._damaged(row, "its checksum differs")
        self._checked[row] = True

    def _damaged(self, row: int, why: str) -> UserError:
        shard = self.folder.files / self.manifest.shards[self._shard[row]].name
        return UserError(
            f"{shard}: sample {self.key(row)} is damaged ({why}); {self.folder.remedy}"
        )

    def _unreadable(self, row: int, error: OSError) -> UserError:
        shard = self.folder.files / self.manifest.shards[self._shard[row]].name
        return UserError(
            f"{shard}: sample {self.key(row)} cannot be read ({error.strerror}); check the disk or the "
            "network that the shard comes from"
        )


def open_dataset(
    location: str | Path, cache: str | Path | None = None, cache_bytes: int = 0
) -> Dataset:
    """Opens a dataset folder, local or behind an fsspec URL such as s3://bucket/dataset.

    Args:
        location: the folder or URL.
        cache: folder for the shards of remote datasets; `$CPPRUNE_CACHE` or `~/.cache/cpprune` if None.
        cache_bytes: limit of the total size of the shards in the cache; 0 for no limit but the disk.

    Raises:
        UserError: the dataset is missing, unfinished, of another format, or its manifest or index has
            changed since the build.
    """
    if is_remote(str(location)):
        root = default_root() if cache is None else Path(cache).expanduser()
        folder = open_remote(str(location), Cache(root.absolute(), cache_bytes))
        return _reopen(folder, folder.files.name)
    return _open(LocalFolder(Path(location).absolute()))


def _open(folder: LocalFolder | RemoteFolder) -> Dataset:
    manifest = read_manifest(folder.files)
    index = folder.files / INDEX_NAME
    if not index.is_file():
        raise UserError(f"{index} is missing; build the dataset again")
    if sha256_of_file(index, max_index_bytes(manifest.index)) != manifest.index["sha256"]:
        raise UserError(
            f"{index} is damaged: its sha256 differs from {folder.files / MANIFEST_NAME}; "
            "copy it again or build the dataset again"
        )
    return Dataset(folder, manifest)


def _reopen(folder: LocalFolder | RemoteFolder, fingerprint: str) -> Dataset:
    dataset = _open(folder)
    if dataset.fingerprint != fingerprint:
        raise UserError(f"{folder.location} was replaced while it was in use; start again")
    return dataset
