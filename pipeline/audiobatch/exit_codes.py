"""What the process says of its end to whoever started it. The README lists them, and scripts rely on them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The end of a command."""

    DONE = 0
    INTERNAL = 1
    #: Settings, or a folder that is in use or cannot be written.
    USAGE = 2
    #: Finished, and something of it is not well.
    PARTIAL = 3
    #: No usable credential, deployment or credit.
    NO_DEPLOYMENT = 4
    #: Run again later.
    PARKED = 5
    #: Of cost or failures.
    LIMIT = 6
    SIGINT = 130
    SIGTERM = 143


#: Where several hold, the first of these does.
BY_SEVERITY = (
    *(ExitCode.INTERNAL, ExitCode.USAGE, ExitCode.NO_DEPLOYMENT, ExitCode.LIMIT, ExitCode.PARKED),
    *(ExitCode.PARTIAL, ExitCode.SIGINT, ExitCode.SIGTERM, ExitCode.DONE),
)
