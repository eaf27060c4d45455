"""A small HTTP server with faults, for the tests of downloads."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves `files`, with faults.

    Attributes:
        files: name to bytes.
        asked: (name, first byte) of each request.
        ranges: whether requests for a part are heeded.
        cuts: name to the bytes after which the next answers break off, one entry for each.
        silent: seconds before an answer.
        codes: name to the codes of the next answers, and their headers.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.ranges = True
        self.silent = 0.0
        self.cuts: dict[str, list[int]] = {}
        self.codes: dict[str, list[tuple[int, dict[str, str]]]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")
        start = int(asked[1])  # type: ignore[index]
        if self.server.silent:
            time.sleep(self.server.silent)
        self.server.asked.append((name, start))
        if codes := self.server.codes.get(name):
            code, headers = codes.pop(0)
            return self._answer(code, headers, b"")
        if name not in self.server.files:
            return self._answer(404, {}, b"")
        data = self.server.files[name]
        if not self.server.ranges:
            return self._answer(200, {"Content-Length": str(len(data))}, self._cut(name, data))
        if start >= len(data):
            return self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        headers["Content-Length"] = str(len(data) - start)
        return self._answer(206, headers, self._cut(name, data[start:]))

    def _cut(self, name: str, data: bytes) -> bytes:
        cuts = self.server.cuts.get(name)
        return data[: cuts.pop(0)] if cuts else data

    def _answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
