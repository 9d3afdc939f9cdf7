"""Real object stores on loopback: Azurite for Blob, moto's server for S3; and a wire between that misbehaves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import platformdirs
import pytest
from filelock import FileLock

from audiobatch.address import Address
from audiobatch.storage.object_stores import filesystem_of
from tests.needed import need

AZURITE = Path(__file__).resolve().parent / "contract" / "azurite" / "package.json"
#: Azurite's documented account; no secret. Source: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_PATIENCE_S = 120.0


class Store:
    """A running store: where it listens, and the environment by which clients find it."""

    protocol: str
    port: int

    def variables(self, port: int | None = None) -> dict[str, str]:
        """The environment of a client; `port`: of a wire that leads to the store."""
        raise NotImplementedError

    def make(self, name: str) -> Address:
        """A new container or bucket; needs the variables set."""
        address = Address(self.protocol, name)
        filesystem_of(address).mkdir(name)
        return address


class Azurite(Store):
    """Azure's own emulator of Blob Storage, from npm."""

    protocol = "az"

    def __init__(self) -> None:
        node = need("node")
        program = _azurite() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        flags = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        with tempfile.NamedTemporaryFile("w+", suffix=".log") as said:
            self._process = subprocess.Popen(
                [node, str(program), *flags, "--blobHost", "127.0.0.1", "--blobPort", "0"],
                stdout=said.fileno(),
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
            until = time.monotonic() + _PATIENCE_S
            while True:
                said.seek(0)
                words = said.read()
                if found := re.search(r"successfully listens on http://127\.0\.0\.1:(\d+)", words):
                    self.port = int(found[1])
                    return
                if time.monotonic() > until or self._process.poll() is not None:
                    pytest.fail(f"Azurite did not start: {words}")
                time.sleep(0.1)

    def variables(self, port: int | None = None) -> dict[str, str]:
        address = f"http://127.0.0.1:{port or self.port}/{ACCOUNT}"
        return {
            "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};"
            f"AccountKey={KEY};BlobEndpoint={address};"
        }

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class S3(Store):
    """A server that answers as S3 does, from pip."""

    protocol = "s3"

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/", timeout=5).close()
                return
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    pytest.fail("moto's server did not start")
                time.sleep(0.1)

    def variables(self, port: int | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _azurite() -> Path:
    """A folder, outside the repository, with Azurite in it; npm brings it once."""
    npm = need("npm")
    manifest = AZURITE.read_bytes()
    folder = (
        Path(platformdirs.user_cache_dir("audiobatch-tests"))
        / f"azurite-{hashlib.sha256(manifest).hexdigest()[:12]}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "installed").exists():
            (folder / "package.json").write_bytes(manifest)
            flags = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
            ended = subprocess.run(
                [npm, "install", *flags], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if ended.returncode != 0:
                words = f"npm install failed:\n{ended.stderr[-2000:]}"
                pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
            (folder / "installed").touch()
    return folder


# What may become of a request on the wire.
PASS, THROTTLED, BUSY, RESET, HALF, LOST, CUT = "pass", "429", "503", "reset", "half", "lost", "cut"
Fate = Callable[[int, str, str], str]


class Wire:
    """Between client and store, one connection a request; `fate(n, method, path)` says what becomes of each.

    `429`, `503`: answered so, and not passed on. `reset`: cut before anything is passed on. `half`: half of the
    request's body is passed on, then both sides are cut. `lost`: passed on and done, but the answer never
    arrives. `cut`: the answer breaks off in the middle.
    """

    def __init__(self, port: int, fate: Fate) -> None:
        self._upstream = port
        self.fate = fate
        self.seen: list[tuple[str, str, str]] = []
        self._counting = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def fates(self) -> list[str]:
        return [fate for fate, _, _ in self.seen if fate != PASS]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            head, body = _request(client)
            if not head:
                return
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            with self._counting:
                fate = self.fate(len(self.seen), method, path)
                self.seen.append((fate, method, path))
            if fate in (THROTTLED, BUSY):
                code = b"429 Too Many Requests" if fate == THROTTLED else b"503 Slow Down"
                client.sendall(b"HTTP/1.1 " + code + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if fate == RESET:
                _reset(client)
                return
            head = re.sub(rb"(?im)^connection:[^\r]*\r\n", b"", head)
            head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            with socket.create_connection(("127.0.0.1", self._upstream), timeout=60) as store:
                if fate == HALF:
                    store.sendall(head + body[: len(body) // 2])
                    _reset(store)
                    _reset(client)
                    return
                store.sendall(head + body)
                answer = b"".join(iter(lambda: store.recv(1 << 20), b""))
            if fate == LOST:
                _reset(client)
                return
            if fate == CUT:
                end = answer.index(b"\r\n\r\n") + 4
                client.sendall(answer[: end + (len(answer) - end) // 2])
                _reset(client)
                return
            client.sendall(answer)


def _request(client: socket.socket) -> tuple[bytes, bytes]:
    client.settimeout(60)
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65_536)
        if not more:
            return b"", b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if b"100-continue" in head.lower():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head)
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        more = client.recv(1 << 20)
        if not more:
            return b"", b""
        body += more
    return head + b"\r\n\r\n", body


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def running(kind: type[Any]) -> Iterator[Any]:
    """For a fixture: a store that lives as long as it is used."""
    store = kind()
    try:
        yield store
    finally:
        store.close()
