"""A real PostgreSQL server of one's own, for tests: Debian's binaries, a scratch folder, a free port.

with PostgresqlServer() as server:
    ledger = Ledger.at(server.url, "outputs/x")

It runs as the user `postgres` where the tests run as root, since PostgreSQL refuses to.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

READY_S = 60.0
STOP_S = 30.0


class PostgresqlServer:
    """One server with one database, `audio`, and one user who may do anything; ended by its pid."""

    def __init__(self) -> None:
        self._binaries = _binaries()
        self._as_other: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        # Not below pytest's own folder: that is closed to other users.
        self.folder = Path(tempfile.mkdtemp(prefix="audiobatch-postgresql-"))
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def user(self) -> str:
        return "postgres" if self._as_other else pwd.getpwuid(os.getuid()).pw_name

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/audio"

    def __enter__(self) -> Self:
        if self._as_other:
            entry = pwd.getpwnam("postgres")
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        command = [self._binaries / "initdb", "-D", self.folder / "data", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*map(str, command), "--locale=C"], check=True, capture_output=True, cwd="/", **self._as_other
        )
        self.start()
        with self.connect("postgres") as connection:
            connection.execute("CREATE DATABASE audio")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it on the same data and port, and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 200,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self._binaries / "postgres"),
                    *("-D", str(self.folder / "data")),
                    *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
                ],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_other,
            )
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self.connect("postgres").close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text(errors="replace"))
            time.sleep(0.05)

    def stop(self) -> None:
        """Fast: connections are cut, what was committed stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(STOP_S)
            self.process = None

    def connect(self, database: str = "audio") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=self.user, dbname=database, autocommit=True
        )


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise RuntimeError("no PostgreSQL server is installed: apt-get install postgresql")
    return found[-1].parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
