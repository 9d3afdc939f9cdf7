"""Lets one run write into a folder: a lock of the operating system, with a record of who holds it.

The lock is the truth and the system frees it when its process dies, however it dies. The record `lock.json`
is for people, and is beside the lock because Windows does not let others read a locked file.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from filelock import FileLock, Timeout

from audiobatch.errors import ConfigError, FolderInUse, StorageError
from audiobatch.storage.atomic_file import NewFile, file_in_the_way, make_folders

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_log = logging.getLogger(__name__)

LOCK_NAME: Final = "lock"
OWNER_NAME: Final = "lock.json"
#: Asking for the holder takes the lock for an instant: a run that starts just then waits so long.
_ACQUIRE_S: Final = 0.3
#: A new owner writes its record right after it has the lock; until then the dead owner's may still be there.
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """The run that holds a folder. Empty strings and pid 0: its record cannot be read."""

    run_id: str
    pid: int
    host: str
    user: str
    started_at: datetime | None

    def __str__(self) -> str:
        if not self.pid:
            return "another run"
        user = f", user {self.user}" if self.user else ""
        since = f", since {self.started_at:%Y-%m-%d %H:%M:%S} UTC" if self.started_at else ""
        return f"run {self.run_id} (process {self.pid} on {self.host}{user}{since})"

    @classmethod
    def this_process(cls, run_id: str) -> Self:
        """Describe a run of this process."""
        user = ""
        with suppress(OSError, KeyError, ImportError):  # no name for this user id, as in many containers
            user = getpass.getuser()
        return cls(
            run_id=run_id,
            pid=os.getpid(),
            host=platform.node(),
            user=user,
            started_at=datetime.now(UTC).replace(microsecond=0),
        )


_UNREADABLE: Final = LockHolder(run_id="", pid=0, host="", user="", started_at=None)


class FolderLock:
    """The right to write into one output folder, until `release` or the end of the process."""

    def __init__(self, folder: Path, holder: LockHolder, lock: FileLock) -> None:
        self.folder = folder
        self.holder_record = holder
        self._lock = lock

    @classmethod
    def acquire(cls, folder: Path, run_id: str, *, shown: str = "") -> FolderLock:
        """Lock the folder; make it where it is missing.

        Args:
            folder: what is locked.
            run_id: of the run that holds it from now on.
            shown: the output that messages name, where it is not the folder.

        Raises:
            FolderInUse: another run holds it; the message says who, since when, and what to do.
            ConfigError: a file is in the way, or the folder cannot be locked: not writable, or no locks there.
        """
        lock = _lock_of(folder)
        try:
            make_folders(folder.resolve())
            lock.acquire(timeout=_ACQUIRE_S, poll_interval=_POLL_S)
        except Timeout:
            output = shown or folder
            raise FolderInUse(
                f"{output} is in use by {_read_record_of_holder(folder)}. Wait until it ends, stop it, "
                f"or name another --output; `audiobatch status {output}` shows how far it is."
            ) from None
        except (OSError, NotImplementedError) as exc:
            if file := file_in_the_way(folder.resolve()):
                raise ConfigError(
                    f"{shown or folder} cannot be the output folder: {file} is a file. Move that file away, or "
                    "name another --output."
                ) from exc
            raise ConfigError(
                f"{folder} cannot be locked: {exc}. It must be writable and on a file system with locks; "
                "name an --output on a local disk."
            ) from exc
        holder = LockHolder.this_process(run_id)
        _write_record(folder, holder)
        return cls(folder, holder, lock)

    def release(self) -> None:
        """Free the folder for the next run; a second call does nothing."""
        if self._lock.is_locked:
            # First, and only while the lock is ours: afterwards it could be the next owner's.
            with suppress(OSError):
                (self.folder / OWNER_NAME).unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @staticmethod
    def holder(folder: Path) -> LockHolder | None:
        """Return the run that holds the folder now; None: nobody. Changes nothing in it."""
        if not (folder / LOCK_NAME).exists():
            return None
        lock = _lock_of(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return _read_record_of_holder(folder)
        except (OSError, NotImplementedError):
            # The lock cannot be tried where we may not write: use the record, unless its process is known to be
            # dead.
            record = _read_record(folder)
            return record if record and not _is_known_dead(record) else None
        lock.release()
        return None


def _lock_of(folder: Path) -> FileLock:
    # Not per thread: the thread that releases need not be the one that acquired.
    # Never the soft lock, which is only a file: a killed run would hold the folder for ever.
    return FileLock(folder / LOCK_NAME, thread_local=False, fallback_to_soft=False)


def _write_record(folder: Path, holder: LockHolder) -> None:
    record = {
        "run_id": holder.run_id,
        "pid": holder.pid,
        "host": holder.host,
        "user": holder.user,
        "started_at": holder.started_at.isoformat() if holder.started_at else None,
    }
    try:
        file = NewFile(folder / OWNER_NAME)
        try:
            file.pour((json.dumps(record) + "\n").encode())
            file.rename()
        finally:
            file.discard()
    except (OSError, StorageError) as exc:
        # The lock holds without it; a second run then cannot say by whom.
        _log.warning("cannot write %s: %s", folder / OWNER_NAME, exc)


def _read_record(folder: Path) -> LockHolder | None:
    try:
        record = json.loads((folder / OWNER_NAME).read_text(encoding="utf-8"))
        return LockHolder(
            run_id=str(record["run_id"]),
            pid=int(record["pid"]),
            host=str(record["host"]),
            user=str(record["user"]),
            started_at=datetime.fromisoformat(record["started_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_record_of_holder(folder: Path) -> LockHolder:
    """The live holder's record, not the one that a dead owner left and the live one is about to replace."""
    deadline = time.monotonic() + _ACQUIRE_S
    while True:
        record = _read_record(folder)
        if record and not _is_known_dead(record):
            return record
        if time.monotonic() > deadline:
            return _UNREADABLE
        time.sleep(_POLL_S)


def _is_known_dead(holder: LockHolder) -> bool:
    if holder.host != platform.node() or os.name == "nt":  # there, signal 0 would end the process
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
