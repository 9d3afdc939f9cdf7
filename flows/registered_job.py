"""A job as a schedule keeps it: whole, without secrets, and the same from whatever folder it is started."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.jobspec import JobSpec

_NAME = re.compile(r"[\w][\w .-]{0,99}")
#: What one run was asked for alone, and what a job may be told only by a person who looks.
_ONE_RUN_ONLY = ("redo", "force")


def with_absolute_paths(spec: JobSpec) -> JobSpec:
    """The job with every path absolute, its output named.

    Raises:
        ConfigError: it reads standard input, or makes results again at every fire.
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
    return from_anywhere(spec)


def from_anywhere(spec: JobSpec) -> JobSpec:
    """The job with every path absolute, its output named: the same for a process in another folder.

    Raises:
        ConfigError: its output has no name.
    """
    from pipeline.discover import output_name

    output = spec.output or output_name(spec.inputs)
    if output is None:
        raise ConfigError("several inputs need --output: the folder that results go to")
    return spec.model_copy(
        update={
            "inputs": tuple(_absolute(one) for one in spec.inputs),
            "output": _absolute(str(output)),
            "prices": _absolute(spec.prices) if spec.prices else None,
            "ledger": _absolute(spec.ledger) if spec.ledger else None,
        }
    )


def name_for(spec: JobSpec, given: str | None) -> str:
    """The schedule's name: the one given, or that of the output folder.

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


def missing_inputs(spec: JobSpec) -> list[str]:
    """Inputs that are not there (yet)."""
    return [one for one in spec.inputs if "://" not in one and not Path(one).exists()]


def _absolute(path: str) -> str:
    return path if path == "-" or "://" in path else os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - links stay
