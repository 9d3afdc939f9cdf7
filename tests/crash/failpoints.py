"""Kills after a chosen step of the write path, put in from outside: the product knows nothing of them.

`install("renamed", 7)` makes this process kill itself, as `kill -9` does, right after the seventh rename.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import signal
from typing import Any

#: Name → (module, attribute, before or after the call). In the order of the write path.
POINTS: dict[str, tuple[str, str, str]] = {
    "intent to be written": ("audiobatch.ledger.ledger", "Ledger.record_intent", "before"),
    "intent written": ("audiobatch.ledger.ledger", "Ledger.record_intent", "after"),
    "request to be sent": ("audiobatch.calls.context", "CallContext.call", "before"),
    "reply received": ("audiobatch.calls.context", "CallContext.call", "after"),
    "file made": ("audiobatch.storage.atomic_file", "NewFile.__init__", "after"),
    "file filled": ("audiobatch.storage.atomic_file", "NewFile.pour", "after"),
    "file renamed": ("audiobatch.storage.atomic_file", "NewFile.rename", "after"),
    "folder flushed": ("audiobatch.storage.atomic_file", "SharedFlushes.flush", "after"),
    "earlier result set aside": ("audiobatch.storage.artifacts", "set_aside", "after"),
    "files written": ("audiobatch.calls.record", "save", "after"),
    "statements run": ("audiobatch.ledger.writer", "LedgerWriter._apply", "after"),
    "batch committed": ("audiobatch.ledger.writer", "LedgerWriter._commit", "after"),
    "outcome written": ("audiobatch.ledger.ledger", "Ledger.record_outcome", "after"),
    "killed run settled": ("audiobatch.ledger.ledger", "Ledger.record_outcome_now", "after"),
    "reports to be written": ("audiobatch.reports.views", "Views.write_all", "before"),
    "reports written": ("audiobatch.reports.views", "Views.write_all", "after"),
    "run to be ended": ("audiobatch.ledger.ledger", "Ledger.end_run", "before"),
}
#: Steps of a run, not of a call: only their first time comes.
ONCE_A_RUN = frozenset({"killed run settled", "reports to be written", "reports written", "run to be ended"})


def install(name: str, nth: int) -> None:
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
            if when == "after":
                reached()
            return result

    setattr(owner, attribute, killing)
