"""The Prefect server that the user runs: that it is there, answers, and keeps what it is told.

Nothing here imports Prefect.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from audiobatch.errors import ConfigError
from audiobatch_flows import prefect_settings
from audiobatch_flows.server import answers, login_header

TIMEOUT_S = 10.0
#: From so many task states at once a recorder keeps up with what a job's shards tell it.
ENOUGH_AT_ONCE = 10


def require(what: str) -> str:
    """The address of the user's server, which answers.

    Raises:
        ConfigError: none is named, or it does not answer; with what to do.
    """
    address = prefect_settings.api_url()
    if address is None:
        raise ConfigError(
            f"{what} live in a Prefect server that stays, and none is named. Start one in another terminal:\n"
            "  audiobatch server\n"
            "and then here:\n"
            "  export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    if not answers(address, TIMEOUT_S):
        raise ConfigError(
            f"Prefect's server at {address} (PREFECT_API_URL) does not answer; `audiobatch server` starts one here"
        )
    return address


def trouble_with(address: str, *, timeout_s: float = TIMEOUT_S) -> str:
    """Why this server could lose states, in a sentence with what to do; empty where it would not, or does not tell.

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
