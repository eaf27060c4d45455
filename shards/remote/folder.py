"""Remote dataset folders: files are fetched into the cache of this node on demand."""

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO

from shards.credentials import file_in, without_credentials
from shards.errors import UserError
from shards.files.documents import read_bytes, read_json
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST,
    Manifest,
    Shard,
    max_index_bytes,
    parse_manifest,
    sha256_of,
    sha256_of_file,
)
from shards.remote.cache import Cache, cannot_write_cache, warn_on_rank_0
from shards.remote.fetch import fetch_bytes, fetch_file

# Seconds for which a failure in the background is reported instead of fetching again.
SECONDS_OF_A_FAILURE = 5.0


class RemoteFolder:
    """Dataset folder behind a URL; `shards.shard_files.LocalFolder` is its counterpart.

    Attributes:
        location: the URL, without credentials.
        files: folder in the cache with `dataset.json`, `index.parquet` and the fetched shards.
        one_by_one: whether only one shard may be open at a time, because not all fit in the cache.
        remedy: what to do about a damaged sample; ends error messages.
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

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self._url, self.cache, self.files.name, self.one_by_one)

    def open(self, shard: Shard) -> int:
        """Returns a new file descriptor of a shard; fetches it first, or waits for another process to.

        Raises:
            UserError: the shard cannot be fetched, or the cache has no room for it.
        """
        return self.cache.open(self.files, shard, self._fetch)

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Fetches shards in the background, in this order, if the whole dataset fits in the cache.

        One process of a node does so at a time; when it ends, another takes over.
        """
        self.close()
        missing = [shard for shard in shards if not (self.files / shard.name).exists()]
        if self.one_by_one or not missing:
            return
        self._stop = Event()
        Thread(target=self._fetch_all, args=(missing, self._stop), daemon=True).start()

    def close(self) -> None:
        """Stops fetching in the background after the current shard."""
        self._stop.set()

    def _fetch_all(self, shards: Sequence[Shard], stop: Event) -> None:
        try:
            with self.cache.exclusive(self.files.name):
                for shard in shards:
                    if stop.is_set():
                        return
                    os.close(self.cache.open(self.files, shard, self._fetch_ahead))
        except (UserError, OSError):
            return  # reported by whoever reads this shard

    def _fetch_ahead(self, shard: Shard, file: BinaryIO) -> None:
        try:
            self._fetch(shard, file)
        except UserError as error:
            self._failed[shard.name] = (time.monotonic(), error)
            raise

    def _fetch(self, shard: Shard, file: BinaryIO) -> None:
        # A reader that waited while the background fetch failed does not wait for a second failure.
        failed = self._failed.pop(shard.name, None)
        if failed and time.monotonic() - failed[0] < SECONDS_OF_A_FAILURE:
            raise failed[1]
        fetch_file(file_in(self._url, shard.name), shard.sha256, shard.bytes, file)


def open_remote(url: str, cache: Cache) -> RemoteFolder:
    """Opens a remote dataset: fetches `dataset.json` and `index.parquet`.

    The manifest is fetched each time, so that a replaced dataset is noticed. If that fails, the
    one of the last time is used.

    Raises:
        UserError: the URL is not a dataset or cannot be reached, or the cache cannot be written.
    """
    url = url.rstrip("/")
    shown = without_credentials(url)
    try:
        cache = cache.prepared()
        manifest = _manifest(url, cache)
        _ensure_index(url, manifest, cache)
    except OSError as error:
        raise cannot_write_cache(cache.root, error) from error
    needed = sum(shard.bytes for shard in manifest.shards)
    fits = cache.fits(needed)
    if not fits:
        warn_on_rank_0(
            f"the shards of {shown} take {needed:,} bytes, more than {cache.root} may hold: evicted "
            "shards are fetched again; raise data.cache_bytes or set data.cache to a larger disk"
        )
    return RemoteFolder(url, cache, manifest.sha256, one_by_one=not fits)


def fetch_index(url: str, manifest: Manifest, file: BinaryIO | None) -> None:
    """Fetches the index of a dataset to an open file; see `fetch_file`."""
    index = manifest.index
    most, exact = max_index_bytes(index), "bytes" in index
    fetch_file(file_in(url, INDEX_NAME), index["sha256"], most, file, exact=exact)


def _manifest(url: str, cache: Cache) -> Manifest:
    """Fetches the manifest and stores it in the cache.

    One process of a node fetches it; processes that wait meanwhile use the same response.
    """
    shown = without_credentials(url)
    # The query may select the dataset; hashing keeps tokens in it secret.
    bare = re.sub(r"//[^/?#]*@", "//", url)
    known = cache.root / f"{sha256_of(bare.encode())}-{os.getuid()}.json"
    start = time.time_ns()
    with cache.exclusive(known.stem):
        last = _last_manifest(known, cache)
        if last is not None and known.stat().st_mtime_ns >= start:
            return last
        address = file_in(url, MANIFEST_NAME)
        try:
            data = fetch_bytes(address, MAX_MANIFEST)
        except UserError as error:
            if last is None:
                raise
            warn_on_rank_0(f"{error}; using the copy in {cache.root / last.sha256}")
            os.utime(known)
            return last
        try:
            manifest = parse_manifest(data)
        except ValueError as error:
            raise UserError(f"{address} cannot be used: {error}") from error
        with cache.new_file(cache.folder(manifest.sha256) / MANIFEST_NAME) as file:
            file.write(data)
        with cache.new_file(known) as file:
            file.write(json.dumps({"url": shown, "dataset": manifest.sha256}).encode())
    return manifest


def _last_manifest(known: Path, cache: Cache) -> Manifest | None:
    """Returns the manifest that this user last fetched from the URL, if it is still cached."""
    try:
        sha256 = read_json(known, dict[str, str])["dataset"]
        if known.stat().st_uid != os.getuid() or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            return None
        manifest = parse_manifest(read_bytes(cache.root / sha256 / MANIFEST_NAME, MAX_MANIFEST))
    except (OSError, ValueError, KeyError):
        return None
    return manifest if manifest.sha256 == sha256 else None


def _ensure_index(url: str, manifest: Manifest, cache: Cache) -> None:
    path = cache.folder(manifest.sha256) / INDEX_NAME
    with cache.exclusive(f"{manifest.sha256}-{INDEX_NAME}"):
        if path.is_file() and sha256_of_file(path) == manifest.index["sha256"]:
            return
        with cache.new_file(path) as file:
            fetch_index(url, manifest, file)


def _restore(url: str, cache: Cache, fingerprint: str, one_by_one: bool) -> RemoteFolder:
    return RemoteFolder(url, cache, fingerprint, one_by_one=one_by_one)
