"""A dataset folder behind a URL: its files come into the cache of this node when they are needed."""

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO

from shards.credentials import file_in, without_credentials
from shards.errors import UserError
from shards.files.documents import read_bytes, read_json
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MOST_MANIFEST,
    Manifest,
    Shard,
    most_index_bytes,
    parse_manifest,
    sha256_of,
    sha256_of_file,
)
from shards.remote.cache import Cache, note, unwritable
from shards.remote.fetch import fetch_bytes, fetch_file

# How long what failed in the background need not be tried again.
SECONDS_OF_A_FAILURE = 5.0


class RemoteFolder:
    """The files of a remote dataset; `shards.local.LocalFolder` is its counterpart.

    Attributes:
        location: the URL, without what is secret in it.
        files: the folder in the cache that holds `dataset.json`, `index.parquet` and the shards that
            were fetched.
        one_by_one: whether the shards do not all fit, so that no more than one may be held open.
        remedy: what to do about a damaged clip.
    """

    def __init__(self, url: str, cache: Cache, fingerprint: str, *, one_by_one: bool) -> None:
        self.location = without_credentials(url)
        self.cache = cache
        self.files = cache.root / fingerprint
        self.one_by_one = one_by_one
        self.remedy = f"remove {self.files}, and it is fetched again"
        self._url = url
        self._stop = Event()
        self._failed: dict[str, tuple[float, UserError]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._url, self.cache, self.files.name, self.one_by_one)

    def open(self, shard: Shard) -> int:
        """Returns a file descriptor of a shard; fetches it first, or waits for it.

        Raises:
            UserError: it cannot be fetched, or the cache has no room for it.
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
        Thread(target=self._fetch_all, args=(missing, self._stop), daemon=True).start()

    def close(self) -> None:
        """Ends the fetching in the background after the shard that is on its way."""
        self._stop.set()

    def _fetch_all(self, shards: Sequence[Shard], stop: Event) -> None:
        try:
            with self.cache.alone(self.files.name):
                for shard in shards:
                    if stop.is_set():
                        return
                    os.close(self.cache.open(self.files, shard, self._fetch_ahead))
        except (UserError, OSError):
            return  # whoever reads this shard will say it

    def _fetch_ahead(self, shard: Shard, file: BinaryIO) -> None:
        try:
            self._fetch(shard, file)
        except UserError as error:
            self._failed[shard.name] = (time.monotonic(), error)
            raise

    def _fetch(self, shard: Shard, file: BinaryIO) -> None:
        # Who waited while it failed in the background need not wait for the same again.
        failed = self._failed.pop(shard.name, None)
        if failed and time.monotonic() - failed[0] < SECONDS_OF_A_FAILURE:
            raise failed[1]
        fetch_file(file_in(self._url, shard.name), shard.sha256, shard.bytes, file)


def open_remote(url: str, cache: Cache) -> RemoteFolder:
    """Fetches `dataset.json` and `index.parquet`.

    The manifest is asked for each time, so that a dataset that was replaced is noticed; if it cannot
    be had, that of the last time serves.

    Raises:
        UserError: the URL is no dataset and cannot be reached, or the cache cannot be written.
    """
    url = url.rstrip("/")
    shown = without_credentials(url)
    try:
        cache = cache.prepared()
        manifest = _manifest(url, cache)
        _have_index(url, manifest, cache)
    except OSError as error:
        raise unwritable(cache.root, error) from error
    needed = sum(shard.bytes for shard in manifest.shards)
    fits = cache.fits(needed)
    if not fits:
        note(
            f"the shards of {shown} take {needed:,} bytes, more than {cache.root} may hold: what had to "
            "be removed is fetched again; raise data.cache_bytes or set data.cache to a larger disk"
        )
    return RemoteFolder(url, cache, manifest.sha256, one_by_one=not fits)


def fetch_index(url: str, manifest: Manifest, file: BinaryIO | None) -> None:
    """Fetches the index of a dataset; see `fetch_file`."""
    index = manifest.index
    most, exact = most_index_bytes(index), "bytes" in index
    fetch_file(file_in(url, INDEX_NAME), index["sha256"], most, file, exact=exact)


def _manifest(url: str, cache: Cache) -> Manifest:
    """Returns what the dataset is; its manifest is then in the cache.

    One process of a node asks for it; those that had to wait meanwhile take the same answer.
    """
    shown = without_credentials(url)
    # The query may say which dataset it is; a hash tells nobody what it was.
    bare = re.sub(r"//[^/?#]*@", "//", url)
    known = cache.root / f"{sha256_of(bare.encode())}-{os.getuid()}.json"
    began = time.time_ns()
    with cache.alone(known.stem):
        last = _last(known, cache)
        if last is not None and known.stat().st_mtime_ns >= began:
            return last
        place = file_in(url, MANIFEST_NAME)
        try:
            data = fetch_bytes(place, MOST_MANIFEST)
        except UserError as error:
            if last is None:
                raise
            note(f"{error}; going on with the copy in {cache.root / last.sha256}")
            os.utime(known)
            return last
        try:
            manifest = parse_manifest(data)
        except ValueError as error:
            raise UserError(f"{place} cannot be used: {error}") from error
        with cache.new_file(cache.folder(manifest.sha256) / MANIFEST_NAME) as file:
            file.write(data)
        with cache.new_file(known) as file:
            file.write(json.dumps({"url": shown, "dataset": manifest.sha256}).encode())
    return manifest


def _last(known: Path, cache: Cache) -> Manifest | None:
    """Returns the manifest that this user got from an address the last time, if it is still there."""
    try:
        sha256 = read_json(known, dict[str, str])["dataset"]
        if known.stat().st_uid != os.getuid() or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            return None
        manifest = parse_manifest(read_bytes(cache.root / sha256 / MANIFEST_NAME, MOST_MANIFEST))
    except (OSError, ValueError, KeyError):
        return None
    return manifest if manifest.sha256 == sha256 else None


def _have_index(url: str, manifest: Manifest, cache: Cache) -> None:
    path = cache.folder(manifest.sha256) / INDEX_NAME
    with cache.alone(f"{manifest.sha256}-{INDEX_NAME}"):
        if path.is_file() and sha256_of_file(path) == manifest.index["sha256"]:
            return
        with cache.new_file(path) as file:
            fetch_index(url, manifest, file)


def _again(url: str, cache: Cache, fingerprint: str, one_by_one: bool) -> RemoteFolder:
    return RemoteFolder(url, cache, fingerprint, one_by_one=one_by_one)
