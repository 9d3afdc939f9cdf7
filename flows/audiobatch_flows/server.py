"""Prefect's API server: one for one run where the user has none of their own, and whether the user's own answers.

Prefect can start such a server by itself; ours is started as the first thing of a run, before anything heavy is
imported, so that inputs are discovered and planned while it comes up, and in a session of its own, so that
Ctrl-C reaches the run and not the server that has to record the run's end.

    server = EmbeddedServer()
    server.start()                  # some ten milliseconds
    ...                             # discovery, planning
    await server.wait_healthy()
    from audiobatch_flows.flow import process_folder

Nothing here imports Prefect. Prefect reads its settings once, so `start` must come before its import.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from audiobatch.child_process import ChildProcess, StartFailed, without_credentials
from audiobatch.errors import ConfigError
from audiobatch_emulator import page_guard
from audiobatch_flows import prefect_private

DEADLINE_S = 120.0
STOP_S = 5.0
ANSWER_S = 10.0
#: From so many task states at once a recorder keeps up with what a job's shards tell it.
ENOUGH_AT_ONCE = 10

#: For this process and the server, wherever the user has not set them otherwise.
#: Recorder: with its own default of 1 a burst of task states overruns a queue, and runs stay RUNNING for ever.
CLIENT_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
    # In Prefect's pages: hundreds of lines that say no more than that a shard is finished.
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "WARNING",
}
SERVER_ENVIRONMENT = {
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


def quiet_prefect() -> None:
    """Keep Prefect's log off this process's terminal. Its pages still get it. The user's own settings hold."""
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    share_login()


def share_login() -> None:
    """Use the login of a server of this machine for its client too: one variable is enough for both.

    The login goes to loopback addresses alone; `PREFECT_API_AUTH_STRING` is for servers elsewhere.
    """
    login = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    address = prefect_private.api_url()
    if login and (address is None or page_guard.is_loopback(urlsplit(address).hostname or "")):
        os.environ.setdefault("PREFECT_API_AUTH_STRING", login)


def login_header() -> dict[str, str]:
    """Return the header that a request to the server carries where it has a login; empty where none is known."""
    login = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}


class EmbeddedServer:
    """One child process that serves Prefect's API on a loopback port of its own.

    Attributes:
        api_url: what `PREFECT_API_URL` was set to; empty before `start`.
        pid: of the child; None before `start` and after `stop`.
    """

    def __init__(self) -> None:
        self.api_url = ""
        self._child: ChildProcess | None = None
        self._replaced: dict[str, str | None] = {}
        self._started_at = 0.0

    @property
    def pid(self) -> int | None:
        """The child's process id, while it runs."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child and point this process at it. It listens, and does not answer yet.

        Raises:
            ConfigError: the child ended at once.
        """
        quiet_prefect()
        self._started_at = time.monotonic()
        environment = {**SERVER_ENVIRONMENT, **without_credentials(), **prefect_private.EPHEMERAL}
        environment.pop("PREFECT_API_URL", None)
        self._child = ChildProcess("audiobatch_flows.server_process", env=environment)
        # Before Prefect's own hooks are registered, so that it runs after they have sent their last events.
        atexit.register(self.stop)
        try:
            port = self._child.wait_ready(DEADLINE_S)
        except StartFailed as failed:
            raise self._failure(str(failed)) from failed
        self.api_url = f"http://127.0.0.1:{port}/api"
        self._replaced["PREFECT_API_URL"] = os.environ.get("PREFECT_API_URL")
        os.environ["PREFECT_API_URL"] = self.api_url

    async def wait_healthy(self, *, deadline_s: float = DEADLINE_S) -> float:
        """Wait until the server answers. Returns the seconds since `start`.

        Raises:
            ConfigError: it ended, or did not answer in time; with the tail of its log.
        """
        assert self._child is not None, "start() comes first"
        end = self._started_at + deadline_s
        while not await asyncio.to_thread(answers, self.api_url, min(5.0, max(0.1, end - time.monotonic()))):
            if self._child.exit_code is not None:
                raise self._failure(f"ended with code {self._child.exit_code}")
            if time.monotonic() > end:
                raise self._failure(f"did not answer within {deadline_s:g} s")
            await asyncio.sleep(0.05)
        return time.monotonic() - self._started_at

    def abandon(self) -> None:
        """End a child that was never asked for anything: at once, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
        self.stop()

    def stop(self) -> None:
        """End the child: by closing its input, which lets it record what it has; then kill it. Safe to repeat."""
        child, self._child = self._child, None
        if child is None:
            return
        atexit.unregister(self.stop)
        child.stop(STOP_S)
        for name, value in self._replaced.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._replaced.clear()

    def log_tail(self) -> str:
        """Return the last lines that the server wrote; empty where none runs."""
        return self._child.stderr_tail() if self._child is not None else ""

    def _failure(self, what: str) -> ConfigError:
        tail = self.log_tail()
        self.stop()
        return ConfigError(
            f"Prefect's embedded server {what}. `--no-prefect` runs the same job without it; "
            "PREFECT_API_URL names a server of your own." + (f"\nIts last words:\n{tail}" if tail else "")
        )


def require_answer(api_url: str, *, timeout_s: float = ANSWER_S) -> None:
    """Make sure, before anything is sent, that the user's own server answers: Prefect itself would try for minutes.

    Raises:
        ConfigError: it does not.
    """
    if not answers(api_url, timeout_s):
        raise ConfigError(
            f"Prefect's server at {api_url} (PREFECT_API_URL) does not answer. Start it, unset PREFECT_API_URL "
            "to run on an embedded one, or use --no-prefect."
        )


def answers(api_url: str, timeout_s: float) -> bool:
    """Ask the server once. The child listens from its first moment, so the answer comes when it is ready."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout_s):  # noqa: S310 - the user's own
            return True
    except urllib.error.HTTPError as refused:
        return refused.code < 500  # it is there; whether it lets us in, Prefect's client says better
    except (OSError, ValueError):
        return False


def require_server(what: str) -> str:
    """Return the address of the user's server, once it has answered.

    Raises:
        ConfigError: none is named, or it does not answer; with what to do.
    """
    address = prefect_private.api_url()
    if address is None:
        raise ConfigError(
            f"{what} live in a Prefect server that stays, and none is named. Start one in another terminal:\n"
            "  audiobatch server\n"
            "and then here:\n"
            "  export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    if not answers(address, ANSWER_S):
        raise ConfigError(
            f"Prefect's server at {address} (PREFECT_API_URL) does not answer; `audiobatch server` starts one here"
        )
    return address


def trouble_with(address: str, *, timeout_s: float = ANSWER_S) -> str:
    """Return why this server could lose states, and what to do; empty where it would not, or does not say.

    By default Prefect's recorder of task runs writes one state at a time. A burst then overruns a queue of fixed
    length, the server drops states with a line in its log, and task runs stay RUNNING for ever.
    """
    try:
        recorder = _settings(address, timeout_s)["server"]["services"]["task_run_recorder"]
        sizes = [int(recorder[name]) for name in ("batch_size", "read_batch_size")]
        is_on = bool(recorder["enabled"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # an older server, one with a login, Prefect Cloud: it does not say
    if not is_on:
        return ""  # recorded by another process, whose settings are not to be seen from here
    if min(sizes) >= ENOUGH_AT_ONCE:
        return ""
    return (
        f"Prefect's server at {address} records task states one by one and may lose some of a large job's "
        "(results are safe). Start it with `audiobatch server`, or set "
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=100 and "
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE=100 for it."
    )


def _settings(address: str, timeout_s: float) -> Any:
    asked = urllib.request.Request(f"{address.rstrip('/')}/admin/settings", headers=login_header())  # noqa: S310
    with urllib.request.urlopen(asked, timeout=timeout_s) as reply:  # noqa: S310
        return json.load(reply)
