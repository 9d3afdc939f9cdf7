"""Prefect's server for people: with pages, schedules and automations, until it is told to end.

    audiobatch server           in one terminal
    PREFECT_API_URL=… …         in all others

It is Prefect's own server; what is added are the settings without which it loses states of task runs under load,
looks for the network, or sends its pages' questions to another port. What the user has set otherwise holds.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

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


def serve(host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; both end it in order.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        ready: is told the origin (`http://127.0.0.1:4200`) once the server answers.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    listener = _listen(host, port)
    origin = f"http://{_reachable(host)}:{listener.getsockname()[1]}"
    prepare_environment(origin)
    # uvicorn raises a signal again once it has ended in order; by then there is nothing left to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ended_in_order)
    from flows import server_child

    on_started: list[Callable[[], Any]] = [partial(ready, origin)]
    with listener, server_child.migration(on_started):
        server_child.http_server(on_started).run(sockets=[listener])


def prepare_environment(origin: str) -> None:
    """Set what this process's server needs, before Prefect is imported and reads it."""
    from flows.server import CLIENT_ENVIRONMENT, SERVER_ENVIRONMENT

    for name, value in {**CLIENT_ENVIRONMENT, **SERVER_ENVIRONMENT, **ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    if not any(os.environ.get(name) for name in PAGES_ASK):
        os.environ[PAGES_ASK[0]] = f"{origin}/api"
    os.environ["PREFECT__SERVER_FINAL"] = "1"


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
    """How others write this host: a name for "every address", brackets around IPv6."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return socket.getfqdn()
    return f"[{host}]" if address.version == 6 else host


def _ended_in_order(_number: int, _frame: Any) -> None:
    sys.stderr.flush()
