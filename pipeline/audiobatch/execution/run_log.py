"""The log of one run: `runs/<run_id>.log`, what the library and the flows say. Ids and causes, no content."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from audiobatch.redaction import shown
from audiobatch.storage.atomic_file import translating

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _RunLog(logging.FileHandler):
    """A log that cannot be written is no reason to stop, nor to fill the terminal with the reasons."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        return


class _OneLine(logging.Formatter):
    """A record is a line, whatever a name in it holds; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        record.message = shown(record.message)
        return super().formatMessage(record)


@contextlib.contextmanager
def run_log(output: Path, run_id: str) -> Iterator[None]:
    """Keep the log until the end of the block.

    Raises:
        StorageError: it cannot be begun.
    """
    path = output / "runs" / f"{run_id}.log"
    with translating(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("audiobatch", "audiobatch_flows")]
    before = [(one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = bool(os.environ.get("AUDIOBATCH_LOG_TO_STDERR"))
    try:
        yield
    finally:
        for one, (level, propagate) in zip(loggers, before, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
            one.propagate = propagate
        with contextlib.suppress(OSError):  # a full disk: what is missing is the end of a log
            handler.close()
