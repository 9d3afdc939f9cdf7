"""Kills after a chosen step of the write path, put in from outside: the product knows nothing of them.

`install("renamed", 7)` makes this process kill itself, as `kill -9` does, right after the seventh rename.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

from audiobatch.ledger.group_commit import Commit

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: Name → (module, attribute, when). In the order of the write path. `after`: once the call has returned, and its
#: commit was awaited; `after wait`: once a thread has waited for the commit.
POINTS: dict[str, tuple[str, str, str]] = {
    "intent to be written": ("audiobatch.ledger.writer", "LedgerWriter.record_intent", "before"),
    "intent written": ("audiobatch.ledger.writer", "LedgerWriter.record_intent", "after"),
    "request to be sent": ("audiobatch.calls.context", "CallContext.call", "before"),
    "reply received": ("audiobatch.calls.context", "CallContext.call", "after"),
    "file made": ("audiobatch.storage.atomic_file", "NewFile.__init__", "after"),
    "file filled": ("audiobatch.storage.atomic_file", "NewFile.pour", "after"),
    "file renamed": ("audiobatch.storage.atomic_file", "NewFile.rename", "after"),
    "folder flushed": ("audiobatch.storage.atomic_file", "SharedFlushes.flush", "after"),
    "earlier result set aside": ("audiobatch.storage.artifacts", "set_aside", "after"),
    "files written": ("audiobatch.calls.record", "save", "after"),
    "statements run": ("audiobatch.ledger.group_commit", "GroupCommit._apply", "after"),
    "batch committed": ("audiobatch.ledger.group_commit", "GroupCommit._commit", "after"),
    "outcome written": ("audiobatch.ledger.writer", "LedgerWriter.record_outcome", "after"),
    "killed run settled": ("audiobatch.ledger.writer", "LedgerWriter.record_outcome", "after wait"),
    "reports to be written": ("audiobatch.reports.views", "Views.write_all", "before"),
    "reports written": ("audiobatch.reports.views", "Views.write_all", "after"),
    "run to be ended": ("audiobatch.ledger.writer", "LedgerWriter.end_run", "before"),
}
#: Steps of a run, not of a call: only their first time comes.
ONCE_A_RUN = frozenset({"killed run settled", "reports to be written", "reports written", "run to be ended"})


class _KillingCommit:
    """A commit that kills this process after it was awaited, or waited for."""

    def __init__(self, commit: Commit[Any], when: str, reached: Callable[[], None]) -> None:
        self._commit = commit
        self._when = when
        self._reached = reached

    def __await__(self) -> Generator[Any, None, Any]:
        answer = yield from self._commit.__await__()
        if self._when == "after":
            self._reached()
        return answer

    def wait(self) -> Any:
        answer = self._commit.wait()
        if self._when == "after wait":
            self._reached()
        return answer


def install(name: str, nth: int) -> None:  # noqa: C901 - the wrapper, for functions and coroutines
    """Kill this process at the nth time that it comes to this point."""
    import importlib

    module_name, path, when = POINTS[name]
    owner: Any = importlib.import_module(module_name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, attribute)
    times = itertools.count(1)

    def reached() -> None:
        if next(times) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def killing(*arguments: Any, **named: Any) -> Any:
            if when == "before":
                reached()
            result = await original(*arguments, **named)
            if when == "after":
                reached()
            return result

    else:

        @functools.wraps(original)
        def killing(*arguments: Any, **named: Any) -> Any:
            if when == "before":
                reached()
            result = original(*arguments, **named)
            if isinstance(result, Commit):
                return _KillingCommit(result, when, reached)
            if when == "after":
                reached()
            return result

    setattr(owner, attribute, killing)
