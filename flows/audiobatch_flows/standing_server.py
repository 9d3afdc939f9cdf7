"""Prefect's server for people: with pages, schedules and automations, until it is stopped.

    audiobatch server           in one terminal
    PREFECT_API_URL=… …         in all others

It is Prefect's own server; what is added are the settings without which it loses states of task runs under load,
looks for the network, or sends its pages' questions to another port, and a guard that keeps other sites' pages out
(`server_guard`). What the user has set otherwise holds.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from audiobatch.errors import ConfigError
from audiobatch_emulator import page_guard
from audiobatch_flows import prefect_private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_PORT = 4200
#: Events wait in queues of fixed length, and what finds one full is dropped. These services empty theirs one by
#: one unless told otherwise. They stay on: automations and the event feed need them.
ENVIRONMENT = {
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
#: Prefect reads either name.
PAGES_ASK = ("PREFECT_SERVER_UI_API_URL", "PREFECT_UI_API_URL")


def serve(
    host: str,
    port: int,
    *,
    names: Sequence[str] = (),
    without_auth: bool = False,
    ready: Callable[[str], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM; both end it in order.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        names: other names by which it may be addressed (`--allow-host`).
        without_auth: let others reach it without a login.
        ready: is given the origin (`http://127.0.0.1:4200`) once the server answers.

    Raises:
        ConfigError: the address cannot be listened on, or others could reach it without a login.
    """
    prepare_environment()
    if not (without_auth or page_guard.is_loopback(host) or _has_login()):
        raise ConfigError(
            f"--host {host}: others could reach the server without a login, read the jobs and start runs. Set "
            "PREFECT_SERVER_API_AUTH_STRING=user:password, for it and PREFECT_API_AUTH_STRING for its clients, or "
            "say --no-auth."
        )
    listener = _listen(host, port)
    shown = names[0] if names and not page_guard.is_loopback(host) else _reachable(host)
    origin = f"http://{shown}:{listener.getsockname()[1]}"
    # uvicorn raises a signal again once it has ended in order; by then there is nothing left to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended_in_order)
    from audiobatch_flows import server_process

    on_started: list[Callable[[], Any]] = [partial(ready, origin)]
    with listener, server_process.migration(on_started):
        hosts = page_guard.allowed_hosts(host, names)
        server_process.http_server(on_started, hosts).run(sockets=[listener])


def prepare_environment() -> None:
    """Set what this process's server needs, before Prefect is imported and reads it."""
    from audiobatch_flows.server import CLIENT_ENVIRONMENT, SERVER_ENVIRONMENT

    for name, value in {**CLIENT_ENVIRONMENT, **SERVER_ENVIRONMENT, **ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    if not any(os.environ.get(name) for name in PAGES_ASK):
        os.environ[PAGES_ASK[0]] = "/api"  # the origin that the page is from, by whichever of its names
    os.environ.update(prefect_private.SERVER_FINAL)


def _has_login() -> bool:
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    return bool(PREFECT_SERVER_API_AUTH_STRING.value())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as failed:
        raise ConfigError(f"--host {host}: {failed.strerror}") from failed
    except OSError as failed:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {failed.strerror}. Is a server running there already? "
            "Name another --port, or 0 for a free one."
        ) from failed


def _reachable(host: str) -> str:
    """Return how this host is written in an address; "every address" is reached from here at the loopback one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host


def _ended_in_order(_number: int, _frame: Any) -> None:
    sys.stderr.flush()
