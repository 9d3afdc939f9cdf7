"""The journal of what was received and what was billed: against it lost and double-paid replies are
measured.

A request's record is written when it has arrived, again when its reply is about to be sent, and again when the
reply's end is known. Each time the whole record is appended as one line, so **the last line of an `n` is the
truth** and a reader folds by `n`; `GET /_emulator/journal` gives them folded. A line is handed to the
operating system at once: it survives the emulator's own kill (not a power cut). A journal that is there
already is continued.

`attempt` counts from 0, as the SDK's `x-stainless-retry-count` does. `max_in_window_10s` is the most
requests of this deployment that any ten seconds so far held.
"""

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

WINDOW_S = 10.0
#: Of what a client calls a deployment, whether there is one or not.
LONGEST_NAME = 256


@dataclass(slots=True, kw_only=True)
class Record:
    """One request, or one response of a socket. The times are ISO 8601, UTC."""

    n: int
    at: str
    finished_at: str | None = None
    transport: str = "chat"
    deployment: str | None = None
    item_hash: str | None = None
    attempt: int = 0
    status: int | None = None
    fault: str | None = None
    billed: bool = False
    delivered: bool = False
    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0
    max_in_window_10s: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the record in the order of its fields, which is the journal's."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS = tuple(field.name for field in fields(Record))


def item_hash(messages: object) -> str:
    """Returns the SHA-256 of the messages, without what a retry changes.

    That is: canonical JSON (sorted keys, no spaces, UTF-8) of the list, each assistant message reduced to
    its role, since a follow-up names the earlier reply by an audio id at one time and by its words at
    another. Model, voice and deployment are not part of it.
    """
    kept = (
        [
            {"role": "assistant"}
            if isinstance(message, dict) and message.get("role") == "assistant"
            else message
            for message in messages
        ]
        if isinstance(messages, list)
        else messages
    )
    return hashlib.sha256(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Journal:
    """Appends records, and answers what was asked of it before."""

    def __init__(self, path: Path | None = None, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._records: dict[int, Record] = {}
        self._last_n = 0
        self._attempts: Counter[str] = Counter()
        self._arrivals: dict[str | None, deque[float]] = {}
        self._most: Counter[str | None] = Counter()
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._continue(path)

    def _continue(self, path: Path) -> None:
        content = path.read_bytes()
        for line in content.splitlines():
            try:
                record = Record(**orjson.loads(line))
            except (ValueError, TypeError):
                continue  # the last line of a killed emulator may be cut
            self._records[record.n] = record
        if content and not content.endswith(b"\n"):
            self._append(b"\n")
        self._last_n = max(self._records, default=0)
        self._attempts.update(r.item_hash for r in self._records.values() if r.item_hash is not None)

    def open(self, *, transport: str) -> Record:
        """Adds a request that is coming in. It is not written yet: a body that never ends is no request."""
        self._last_n += 1
        record = Record(n=self._last_n, at=self._stamp(), transport=transport)
        self._records[record.n] = record
        return record

    def identify(
        self, record: Record, *, deployment: str | None, hashed: str | None, retry_count: int
    ) -> None:
        """Records what was asked, and of whom."""
        record.deployment = None if deployment is None else deployment[:LONGEST_NAME]
        record.item_hash = hashed
        record.attempt = retry_count
        if hashed is not None:
            record.attempt = max(retry_count, self._attempts[hashed])
            self._attempts[hashed] += 1
        record.max_in_window_10s = self._arrived(deployment)
        self._write(record)

    def answer(self, record: Record, *, status: int, billed: bool) -> None:
        """Records that the reply is about to be sent; from here on a real service charges for it."""
        record.status = status
        record.billed = billed
        self._write(record)

    def close(self, record: Record, *, delivered: bool) -> None:
        """Records that the reply was delivered whole, or never will be."""
        record.delivered = delivered
        record.finished_at = self._stamp()
        self._write(record)

    def records(self) -> list[dict[str, Any]]:
        """Returns all records as they are, in the order of arrival."""
        return [record.as_dict() for record in self._records.values()]

    def reset(self) -> None:
        """Forgets everything, in the file too; the next record is number 1."""
        self._records.clear()
        self._last_n = 0
        self._attempts.clear()
        self._arrivals.clear()
        self._most.clear()
        if self._file is not None:
            os.ftruncate(self._file, 0)

    def close_file(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _arrived(self, deployment: str | None) -> int:
        now = self._now()
        arrivals = self._arrivals.setdefault(deployment, deque())
        arrivals.append(now)
        while arrivals[0] <= now - WINDOW_S:
            arrivals.popleft()
        self._most[deployment] = max(self._most[deployment], len(arrivals))
        return self._most[deployment]

    def _stamp(self) -> str:
        return (
            datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )

    def _write(self, record: Record) -> None:
        # A record of before a reset is not in the journal any more, and must not come back.
        if self._records.get(record.n) is record:
            self._append(orjson.dumps(record.as_dict(), option=orjson.OPT_APPEND_NEWLINE))

    def _append(self, line: bytes) -> None:
        if self._file is not None:
            os.write(self._file, line)
