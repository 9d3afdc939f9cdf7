"""One flush of a folder serves all who asked before it began, and nobody who asked later."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiobatch.storage import atomic_file
from audiobatch.storage.atomic_file import SharedFlushes

FOLDER = Path("audio")
LONG_S = 30.0


class Disk:
    """Flushes that each wait for the test's leave, and end as it says."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)
        self.ends: list[OSError | None] = []
        self.count = 0

    def sync_folder(self, folder: Path) -> None:
        number = self.count
        self.count += 1
        self.begun.release()
        assert self.leave.acquire(timeout=LONG_S)
        failed = self.ends[number] if number < len(self.ends) else None
        if failed is not None:
            raise failed


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    one = Disk()
    monkeypatch.setattr(atomic_file, "sync_folder", one.sync_folder)
    return one


def asked(flushes: SharedFlushes, count: int) -> None:
    """Wait until so many wait for the round that has not begun."""
    ends = threading.Event()
    for _ in range(int(LONG_S * 100)):
        if flushes.waiting(FOLDER) == count:
            return
        ends.wait(0.01)
    raise AssertionError(f"{flushes.waiting(FOLDER)} of {count} wait")


def test_many_threads_share_one_flush_that_begins_after_they_asked(disk: Disk) -> None:
    flushes = SharedFlushes()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(flushes.flush, FOLDER)
        assert disk.begun.acquire(timeout=LONG_S)
        others = [threads.submit(flushes.flush, FOLDER) for _ in range(5)]
        asked(flushes, 5)
        disk.leave.release()
        first.result(LONG_S)
        assert disk.begun.acquire(timeout=LONG_S)
        assert not any(
            other.done() for other in others
        )  # the flush under way when they asked was none of theirs
        disk.leave.release()
        for other in others:
            other.result(LONG_S)
    assert disk.count == 2


def test_a_flush_that_fails_fails_for_all_who_shared_it_and_for_nobody_else(disk: Disk) -> None:
    disk.ends = [None, OSError(errno.EIO, "broken")]
    flushes = SharedFlushes()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(flushes.flush, FOLDER)
        assert disk.begun.acquire(timeout=LONG_S)
        others = [threads.submit(flushes.flush, FOLDER) for _ in range(3)]
        asked(flushes, 3)
        disk.leave.release(3)
        first.result(LONG_S)
        for other in others:
            with pytest.raises(OSError, match="broken"):
                other.result(LONG_S)
        flushes.flush(FOLDER)
    assert disk.count == 3


def test_folders_do_not_wait_for_each_other(disk: Disk) -> None:
    flushes = SharedFlushes()
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(flushes.flush, Path(name)) for name in ("audio", "transcripts")]
        for _ in both:
            assert disk.begun.acquire(timeout=LONG_S)
        disk.leave.release(2)
        for child in both:
            child.result(LONG_S)
    assert disk.count == 2
