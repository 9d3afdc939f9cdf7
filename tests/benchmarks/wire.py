"""A listener in this process that knows when the first request came: for what counts from a command's start."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from typing import TYPE_CHECKING

from tests.benchmarks.fixed_server import reply_body

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wire(socketserver.ThreadingTCPServer):
    """Answers every request with a small reply; `first_s` is when the first one came, on the monotonic clock."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        body = reply_body(9_600)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.answer = head.encode() + body
        self.first_s: float | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.StreamRequestHandler):
    server: Wire

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that ends may break off
            self.answer_all()

    def answer_all(self) -> None:
        while line := self.rfile.readline():
            if self.server.first_s is None:
                self.server.first_s = time.monotonic()
            length = 0
            while line.strip():
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length":
                    length = int(value)
                line = self.rfile.readline()
            self.rfile.read(length)
            self.wfile.write(self.server.answer)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    server = Wire()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
