"""Raise the limit of open file descriptors, and compute how many calls in flight it allows.

Each call in flight has a connection; writing a reply opens a file and a folder. A process without free descriptors
can neither write the replies that it paid for nor continue. So the soft limit is raised to what the system allows,
and the number of calls in flight stays below it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from audiobatch.errors import ConfigError

#: More than any run needs; a limit of millions makes some child programs slow.
MAX_LIMIT = 65_536
#: Descriptors for everything but calls: a file and a folder for each writing thread, the ledger's connections,
#: reports, child processes, imports.
RESERVE = 96
#: Descriptors for connections to an object store, and for copies of its recordings.
RESERVE_FOR_STORES = 128

_DESCRIPTOR_FOLDERS = ("/proc/self/fd", "/dev/fd")


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard limit, if the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MAX_LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # the system may allow less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int | None:
    """Return the soft limit of open files; None where there is none."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def open_count() -> int:
    """Return how many descriptors are open in this process."""
    for folder in map(Path, _DESCRIPTOR_FOLDERS):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))  # noqa: PTH208 - the names suffice
    return 0


def calls_allowed(*, in_stores: bool, streams: bool) -> int | None:
    """Return how many calls may be in flight at once; None where there is no limit.

    Args:
        in_stores: whether inputs or results are in an object store.
        streams: whether replies are written to disk while they arrive.

    Raises:
        ConfigError: the limit does not allow a single call.
    """
    allowed = limit()
    if allowed is None:
        return None
    left = allowed - open_count() - RESERVE - (RESERVE_FOR_STORES if in_stores else 0)
    calls = left // (2 if streams else 1)
    if calls < 1:
        raise ConfigError(
            f"this process may have only {allowed} files open, too few for a run. Raise the limit with `ulimit -n "
            f"{allowed - left + 64}` or more, and run the same command again"
        )
    return calls
