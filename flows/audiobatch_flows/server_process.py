"""Prefect's API server as a child process of a run: `python -m audiobatch_flows.server_process`.

It says on its standard output which port it listens on, before anything heavy is imported: the port is its own
from that moment, so that two servers never race for one, and a client's first request simply waits until the
server can answer. It ends when its standard input does, or when its parent is gone: a run that dies by
`kill -9` leaves no server behind.

The database is migrated only where it was not brought to its present revision by this very version of Prefect;
a lock beside the database keeps two first starts from migrating it at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from audiobatch_emulator import page_guard
from audiobatch_flows import server_guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import uvicorn

PARENT_POLL_S = 1.0
LAST_WORDS_S = 4.0
MIGRATION_PATIENCE_S = 300.0


def main() -> None:
    """Listen, announce the port, serve until the parent is gone or says so."""
    gc.disable()  # a tenth of the start-up; nothing of what is imported now is ever garbage
    parent = os.getppid()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    # What a library prints later must not meet a closed pipe.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    gone = threading.Event()
    on_started: list[Callable[[], None]] = []
    threading.Thread(target=_watch_input, args=(gone,), daemon=True).start()
    threading.Thread(target=_watch_parent, args=(gone, parent), daemon=True).start()
    server = http_server(on_started, page_guard.LOOPBACK_NAMES)
    threading.Thread(target=_end, args=(gone, server), daemon=True).start()
    with migration(on_started):
        server.run(sockets=[listener])


def http_server(on_started: list[Callable[[], None]], hosts: frozenset[str]) -> uvicorn.Server:
    """The HTTP server.

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

    from audiobatch_flows import server_schema

    database = server_schema.sqlite_path(str(PREFECT_API_DATABASE_CONNECTION_URL.value() or ""))
    skip = temporary_settings({PREFECT_API_DATABASE_MIGRATE_ON_START: False})
    with contextlib.ExitStack() as whole:
        if database is not None and PREFECT_API_DATABASE_MIGRATE_ON_START.value():
            if server_schema.is_current(database, __version__):
                whole.enter_context(skip)
            else:
                database.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(f"{database}.audiobatch-lock")
                lock.acquire(timeout=MIGRATION_PATIENCE_S)
                if server_schema.is_current(database, __version__):
                    lock.release()
                    whole.enter_context(skip)
                else:
                    on_started += [partial(server_schema.record, database, __version__), lock.release]
        yield


def _watch_input(gone: threading.Event) -> None:
    """Standard input is a pipe that the parent holds; it ends with the parent, or when the parent closes it."""
    with contextlib.suppress(OSError):
        # Not `sys.stdin.read`: its lock, held by a thread, makes the interpreter abort at its end.
        while os.read(sys.stdin.fileno(), 1024):
            pass
    gone.set()


def _watch_parent(gone: threading.Event, parent: int) -> None:
    """The pipe's other end may live on in a forked child of the parent; the parent's id does not."""
    if os.name != "nt":
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        gone.set()


def _end(gone: threading.Event, server: uvicorn.Server) -> None:
    """Let a server that serves record what it has; nothing waits for one that was still starting."""
    gone.wait()
    if server.started:
        server.should_exit = True
        time.sleep(LAST_WORDS_S)
    os._exit(0)


if __name__ == "__main__":
    main()
