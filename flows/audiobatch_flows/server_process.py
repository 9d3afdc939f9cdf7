"""Prefect's API server as a child process of a run: `python -m audiobatch_flows.server_process`.

It says on its standard output which port it listens on, before anything heavy is imported: the port is its own
from that moment, so that two servers never race for one, and a client's first request simply waits until the
server can answer. It ends when its standard input does, or when its parent is gone: a run that dies by
`kill -9` leaves no server behind.

The database is migrated only where it was not brought to its present revision by this very version of Prefect;
a lock beside the database prevents two first starts from migrating it at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from audiobatch.child_process import announce, on_parent_exit
from audiobatch_emulator import page_guard
from audiobatch_flows import prefect_private, server_guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import uvicorn

LAST_WORDS_S = 4.0
MIGRATION_PATIENCE_S = 300.0


def main() -> None:
    """Listen, announce the port, serve until the parent is gone or says so."""
    gc.disable()  # a tenth of the start-up; nothing of what is imported now is ever garbage
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    announce(str(listener.getsockname()[1]))
    on_started: list[Callable[[], None]] = []
    server = http_server(on_started, page_guard.LOOPBACK_NAMES)
    on_parent_exit(partial(_end, server))
    with migration(on_started):
        server.run(sockets=[listener])


def http_server(on_started: list[Callable[[], None]], hosts: frozenset[str]) -> uvicorn.Server:
    """Build the HTTP server.

    Args:
        on_started: called once the application answers.
        hosts: the names by which it may be addressed.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                for act in on_started:
                    act()
                gc.freeze()
                gc.enable()

    config = uvicorn.Config(
        partial(server_guard.prefect_app, hosts),
        factory=True,
        lifespan="on",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    return Server(config)


@contextlib.contextmanager
def migration(on_started: list[Callable[[], None]]) -> Iterator[None]:
    """Skip the migration where it would do nothing; else hold the database's lock until the server has started.

    Then the revision is recorded and the lock freed. A server that ends before has its lock freed by the system;
    Prefect migrates in transactions, so the next one goes on where this one was.
    """
    from filelock import FileLock
    from prefect import __version__
    from prefect.settings import (
        PREFECT_API_DATABASE_CONNECTION_URL,
        PREFECT_API_DATABASE_MIGRATE_ON_START,
        temporary_settings,
    )

    database = prefect_private.sqlite_path(str(PREFECT_API_DATABASE_CONNECTION_URL.value() or ""))
    skip = temporary_settings({PREFECT_API_DATABASE_MIGRATE_ON_START: False})
    with contextlib.ExitStack() as whole:
        if database is not None and PREFECT_API_DATABASE_MIGRATE_ON_START.value():
            if prefect_private.is_migrated(database, __version__):
                whole.enter_context(skip)
            else:
                database.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(f"{database}.audiobatch-lock")
                lock.acquire(timeout=MIGRATION_PATIENCE_S)
                if prefect_private.is_migrated(database, __version__):
                    lock.release()
                    whole.enter_context(skip)
                else:
                    on_started += [
                        partial(prefect_private.record_migration, database, __version__),
                        lock.release,
                    ]
        yield


def _end(server: uvicorn.Server) -> None:
    """End the process: at once, unless the server serves; then it may record what it has."""
    if server.started:
        server.should_exit = True
        time.sleep(LAST_WORDS_S)
    os._exit(0)


if __name__ == "__main__":
    main()
