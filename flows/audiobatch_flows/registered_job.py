"""A job as a schedule stores it: whole, without secrets, and the same from whatever folder it is started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch_flows.schedules import Scheduled

_NAME = re.compile(r"[\w][\w .-]{0,99}")
#: What one run was asked for alone.
_ONE_RUN_ONLY = ("redo", "force")


def with_absolute_paths(spec: JobSpec) -> JobSpec:
    """Return the job with every path absolute, its output named.

    Raises:
        ConfigError: it reads standard input, makes results again, or adopts results, at every fire.
    """
    if not spec.inputs:
        raise ConfigError("no input given: name the folder, file or table that each run is to look at")
    if "-" in spec.inputs:
        raise ConfigError(
            "'-' reads standard input, which a scheduled job does not have; name a file or a folder"
        )
    for name in _ONE_RUN_ONLY:
        if getattr(spec, name):
            raise ConfigError(f"--{name} would buy the same results again at every fire; leave it out")
    if spec.adopt:
        raise ConfigError("--adopt is for one run that a person watches; leave it out")
    return from_anywhere(spec)


def from_anywhere(spec: JobSpec) -> JobSpec:
    """Return the job with every path absolute, its output named: the same for a process in another folder.

    Raises:
        ConfigError: its output has no name.
    """
    from audiobatch.storage.output import output_name

    output = spec.output or output_name(spec.inputs)
    if output is None:
        raise ConfigError("several inputs need --output: the folder that results go to")
    return spec.model_copy(
        update={
            "inputs": tuple(_absolute(given) for given in spec.inputs),
            "output": _absolute(str(output)),
            "prices": _absolute(spec.prices) if spec.prices else None,
            "ledger": _absolute(spec.ledger) if spec.ledger else None,
        }
    )


def name_for(spec: JobSpec, given: str | None) -> str:
    """Return the schedule's name: the one given, or that of the output folder.

    Raises:
        ConfigError: Prefect would not take it.
    """
    name = given or Path(spec.output or "").name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r}: a schedule's name begins with a letter or digit and goes on with letters, digits, "
            "spaces, '.', '-' and '_'"
        )
    return name


def destinations(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a job's calls go, with which credential, and where its ledger is: what a run may not change.

    Args:
        job: a flow's parameter.
    """
    found = {name: job.get(name) for name in ("provider", "endpoint", "auth", "ledger")}
    found["deployments"] = [
        {name: deployment.get(name) for name in ("provider", "endpoint")}
        for deployment in job.get("deployments") or ()
        if isinstance(deployment, Mapping)
    ]
    return found


def refusal(accepted: Mapping[str, Any], now: Scheduled, parameters: Mapping[str, Any]) -> str:
    """Return why a run of a registered job is not started; empty where it is.

    Whoever reaches Prefect's server can change a job and start runs with parameters of their own. The credentials
    are this process's, so that they go nowhere but where the job pointed when it was taken up.

    Args:
        accepted: its `destinations` when it was taken up.
        now: the job as it is.
        parameters: of the flow run.
    """
    if now.has_pull_steps:
        return "it has pull steps, and `audiobatch schedule` writes none: register it again"
    job = parameters.get("job")
    for what, found in (("the job", now.job), ("this run", job if isinstance(job, Mapping) else {})):
        other = [name for name, value in destinations(found).items() if value != accepted[name]]
        if other:
            names = " and ".join(other)
            return (
                f"{what} names another {names} than the job that `audiobatch serve` took up. Where that is meant, "
                "register it with `audiobatch schedule` and start `serve` again"
            )
    return ""


def missing_inputs(spec: JobSpec) -> list[str]:
    """Inputs that are not there (yet)."""
    return [given for given in spec.inputs if "://" not in given and not Path(given).exists()]


def _absolute(path: str) -> str:
    return path if path == "-" or "://" in path else os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - links stay
