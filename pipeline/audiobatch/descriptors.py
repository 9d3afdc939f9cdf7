"""How many files and connections this process may have open, and how many calls that leaves room for.

Each call in flight holds a connection; a reply that is written holds a file and a folder for a moment. A process
that runs out of descriptors can neither write what it has paid for nor go on. So the soft limit is raised to what
the system allows, and calls in flight stay below what is left of it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from audiobatch.errors import ConfigError

#: More than any run needs; a limit of millions makes some programs that inherit it slow.
MOST = 65_536
#: Kept for all but the calls: a file and a folder for each thread that writes, readers of the ledger, reports, the
#: programs that are started, modules that are imported.
RESERVE = 96
#: For the connections to an object store, and the copies of its recordings.
RESERVE_FOR_STORES = 128

_OPEN_ONES = ("/proc/self/fd", "/dev/fd")


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one. Does nothing where the system has no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int | None:
    """The soft limit; None where there is none."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def open_now() -> int:
    """Descriptors that are open in this process."""
    for folder in map(Path, _OPEN_ONES):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))  # noqa: PTH208 - names are enough
    return 0


def calls_allowed(*, in_stores: bool, streams: bool) -> int | None:
    """Calls that may be in flight at once; None where nothing limits them.

    Args:
        in_stores: inputs or results are in an object store.
        streams: replies are copied to disk while they come.

    Raises:
        ConfigError: not even one.
    """
    most = limit()
    if most is None:
        return None
    left = most - open_now() - RESERVE - (RESERVE_FOR_STORES if in_stores else 0)
    calls = left // (2 if streams else 1)
    if calls < 1:
        raise ConfigError(
            f"this process may have only {most} files open, too few for a run. Raise the limit with `ulimit -n "
            f"{most - left + 64}`, or more, and run the same command again"
        )
    return calls
