"""A dataset folder behind a URL: its files come into the cache of this node when they are needed."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO

from shards.cache import Cache, unwritable
from shards.durable import replace_file
from shards.errors import InputError
from shards.fetch import fetch_bytes, fetch_file
from shards.launcher import process_rank
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    Manifest,
    Shard,
    parse_manifest,
    sha256_of,
    sha256_of_file,
)


class RemoteFolder:
    """The files of a remote dataset; `shards.local.LocalFolder` is its counterpart.

    Attributes:
        location: the URL.
        files: the folder in the cache that holds `dataset.json`, `index.parquet` and the shards that
            were fetched.
        one_by_one: whether the shards do not all fit, so that no more than one may be held open.
        remedy: what to do about a damaged clip.
    """

    def __init__(self, location: str, cache: Cache, fingerprint: str, *, one_by_one: bool) -> None:
        self.location = location
        self.cache = cache
        self.files = cache.root / fingerprint
        self.one_by_one = one_by_one
        self.remedy = f"remove {self.files}, and it is fetched again"
        self._stop = Event()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.location, self.cache, self.files.name, self.one_by_one)

    def open(self, shard: Shard) -> int:
        """Returns a file descriptor of a shard; fetches it first, or waits for it.

        Raises:
            InputError: it cannot be fetched, or the cache has no room for it.
        """
        return self.cache.open(self.files, shard, self._fetch)

    def expect(self, shards: Iterable[Shard]) -> None:
        """Fetches shards in the background, in this order, as long as all of them fit.

        One process of a node fetches ahead at a time; should it end, another takes over.
        """
        self.close()
        missing = [shard for shard in shards if not (self.files / shard.name).exists()]
        if self.one_by_one or not missing:
            return
        self._stop = Event()
        Thread(target=self._fetch_ahead, args=(missing, self._stop), daemon=True).start()

    def close(self) -> None:
        """Ends the fetching in the background after the shard that is on its way."""
        self._stop.set()

    def _fetch_ahead(self, shards: Sequence[Shard], stop: Event) -> None:
        try:
            with self.cache.alone(self.files.name):
                for shard in shards:
                    if stop.is_set():
                        return
                    os.close(self.open(shard))
        except (InputError, OSError):
            return  # whoever reads this shard will say it

    def _fetch(self, shard: Shard, file: BinaryIO) -> None:
        fetch_file(f"{self.location}/{shard.name}", shard.sha256, shard.bytes, file)


def open_remote(url: str, cache: Cache) -> RemoteFolder:
    """Fetches `dataset.json` and `index.parquet`.

    The manifest is asked for each time, so that a dataset that was replaced is noticed; if it cannot
    be had, that of the last time serves.

    Raises:
        InputError: the URL is no dataset and cannot be reached, or the cache cannot be written.
    """
    url = url.rstrip("/")
    try:
        cache.root.mkdir(parents=True, exist_ok=True)
        known = cache.root / f"{sha256_of(url.encode())}.json"
        manifest = _manifest(url, cache, known)
        files = cache.root / manifest.sha256
        files.mkdir(exist_ok=True)
        if not (files / MANIFEST_NAME).is_file():
            replace_file(files / MANIFEST_NAME, files, manifest.to_bytes())
        _fetch_index(url, manifest, files / INDEX_NAME)
        address = {"url": url, "dataset": manifest.sha256}
        replace_file(known, cache.root, json.dumps(address).encode())
    except OSError as error:
        raise unwritable(cache.root, error) from error
    needed = sum(shard.bytes for shard in manifest.shards)
    fits = cache.fits(needed)
    if not fits:
        _note(
            f"the shards of {url} take {needed:,} bytes, more than {cache.root} may hold: what had to "
            "be removed is fetched again; raise data.cache_bytes or set data.cache to a larger disk"
        )
    return RemoteFolder(url, cache, manifest.sha256, one_by_one=not fits)


def _note(text: str) -> None:
    if process_rank() == 0:
        print(f"cpprune: {text}", file=sys.stderr)


def _manifest(url: str, cache: Cache, known: Path) -> Manifest:
    try:
        data = fetch_bytes(f"{url}/{MANIFEST_NAME}")
    except InputError as error:
        if not known.is_file():
            raise
        folder = cache.root / json.loads(known.read_bytes())["dataset"]
        _note(f"{error}; going on with the copy in {folder}")
        data = (folder / MANIFEST_NAME).read_bytes()
    try:
        manifest = parse_manifest(data)
    except ValueError as error:
        raise InputError(f"{url}/{MANIFEST_NAME} cannot be used: {error}") from error
    strange = [s.name for s in manifest.shards if Path(s.name).name != s.name]
    if strange:
        raise InputError(f"{url}/{MANIFEST_NAME} cannot be used: {strange[0]!r} is no file name")
    return manifest


def _fetch_index(url: str, manifest: Manifest, path: Path) -> None:
    sha256 = manifest.index["sha256"]
    if path.is_file() and sha256_of_file(path) == sha256:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            fetch_file(f"{url}/{path.name}", sha256, None, file)
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _again(location: str, cache: Cache, fingerprint: str, one_by_one: bool) -> RemoteFolder:
    return RemoteFolder(location, cache, fingerprint, one_by_one=one_by_one)
