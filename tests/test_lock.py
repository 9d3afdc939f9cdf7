"""One run a folder: the lock is the system's, its owner can be read, a dead owner's is free by itself."""

import contextlib
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock
import pytest

from audiobatch.errors import ConfigError, FolderInUse
from audiobatch.storage import lock as lock_module
from audiobatch.storage.lock import LOCK_NAME, OWNER_NAME, FolderLock

HOLDER = """
import sys, time
from pathlib import Path
from audiobatch.storage.lock import FolderLock
lock = FolderLock.acquire(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
lock.release()
"""

RACER = """
import sys
from pathlib import Path
from audiobatch.errors import FolderInUse
from audiobatch.storage.lock import FolderLock
print("ready", flush=True)
while folder := sys.stdin.readline().strip():
    lock = None
    try:
        lock = FolderLock.acquire(Path(folder), sys.argv[1])
        print("held", flush=True)
    except FolderInUse as exc:
        print("in use:", exc, flush=True)
    sys.stdin.readline()
    if lock:
        lock.release()
"""


@contextlib.contextmanager
def program(source: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", source, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(120) == 0


def test_a_second_run_says_who_holds_the_folder_since_when_and_what_to_do(tmp_path: Path) -> None:
    with program(HOLDER, tmp_path, "run-1") as other:
        assert line_of(other) == "held"
        with pytest.raises(FolderInUse) as refusal:
            FolderLock.acquire(tmp_path, "run-2")
        message = refusal.value.message
        assert f"{tmp_path} is in use by run run-1 (process {other.pid} on {platform.node()}" in message
        assert f"since {datetime.now(UTC):%Y-}" in message
        assert "name another --output" in message
        end(other)
    FolderLock.acquire(tmp_path, "run-2").release()


def test_the_holder_can_be_read_while_it_holds(tmp_path: Path) -> None:
    assert FolderLock.holder(tmp_path) is None
    with program(HOLDER, tmp_path, "run-1") as other:
        assert line_of(other) == "held"
        for _ in range(50):
            holder = FolderLock.holder(tmp_path)
            assert holder is not None
            assert (holder.run_id, holder.pid, holder.host) == ("run-1", other.pid, platform.node())
            assert holder.started_at is not None
            assert abs(datetime.now(UTC) - holder.started_at) < timedelta(minutes=1)
        end(other)
    assert FolderLock.holder(tmp_path) is None
    assert not (tmp_path / OWNER_NAME).exists()


def test_asking_for_the_holder_makes_no_file(tmp_path: Path) -> None:
    assert FolderLock.holder(tmp_path / "nowhere") is None
    assert FolderLock.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_the_lock_of_a_killed_owner_is_free_by_itself(tmp_path: Path) -> None:
    with program(HOLDER, tmp_path, "run-1") as other:
        assert line_of(other) == "held"
        other.send_signal(signal.SIGKILL)
        other.wait(120)
    assert (tmp_path / OWNER_NAME).exists()
    assert FolderLock.holder(tmp_path) is None
    with FolderLock.acquire(tmp_path, "run-2") as mine:
        assert mine.holder_record.run_id == "run-2"
        assert json.loads((tmp_path / OWNER_NAME).read_text())["pid"] == os.getpid()


def test_of_two_runs_started_at_once_exactly_one_gets_the_folder(tmp_path: Path) -> None:
    with program(RACER, "run-a") as first, program(RACER, "run-b") as second:
        racers = (first, second)
        assert [line_of(racer) for racer in racers] == ["ready", "ready"]
        for attempt in range(20):
            for racer in racers:
                tell(racer, str(tmp_path / str(attempt)))
            said = [line_of(racer) for racer in racers]
            assert sorted(text.partition(":")[0] for text in said) == ["held", "in use"]
            winner = "run-a" if said[0] == "held" else "run-b"
            assert f"in use by run {winner} " in next(text for text in said if text != "held")
            for racer in racers:
                tell(racer, "release")
        for racer in racers:
            end(racer)


def test_who_only_looks_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    # To look is to have the lock for an instant: here a long one.
    look = filelock.FileLock(tmp_path / LOCK_NAME, thread_local=False)
    look.acquire()
    timer = threading.Timer(0.15, look.release)
    timer.start()
    FolderLock.acquire(tmp_path, "run-1").release()
    timer.join()


def test_another_thread_may_release_and_twice_is_as_once(tmp_path: Path) -> None:
    held = FolderLock.acquire(tmp_path, "run-1")
    thread = threading.Thread(target=held.release)
    thread.start()
    thread.join()
    assert FolderLock.holder(tmp_path) is None
    with FolderLock.acquire(tmp_path, "run-2"):
        held.release()
        holder = FolderLock.holder(tmp_path)
        assert holder is not None
        assert holder.run_id == "run-2"


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with FolderLock.acquire(tmp_path, "run-1"), pytest.raises(FolderInUse, match="in use by run run-1"):
        FolderLock.acquire(tmp_path, "run-2")


def test_two_folders_are_two_locks(tmp_path: Path) -> None:
    with FolderLock.acquire(tmp_path / "a", "run-1"), FolderLock.acquire(tmp_path / "b", "run-2"):
        assert (tmp_path / "a" / LOCK_NAME).exists()


def test_a_dead_owner_s_record_is_not_taken_for_the_live_one_s(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with FolderLock.acquire(tmp_path, "run-1"):
        record = json.loads((tmp_path / OWNER_NAME).read_text())
        (tmp_path / OWNER_NAME).write_text(json.dumps(record | {"pid": dead.pid, "run_id": "run-0"}))
        with pytest.raises(FolderInUse, match="is in use by another run"):
            FolderLock.acquire(tmp_path, "run-2")


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_damaged_record_does_not_open_the_lock(tmp_path: Path, record: str) -> None:
    with FolderLock.acquire(tmp_path, "run-1"):
        (tmp_path / OWNER_NAME).write_text(record)
        with pytest.raises(FolderInUse, match="is in use by another run"):
            FolderLock.acquire(tmp_path, "run-2")
        holder = FolderLock.holder(tmp_path)
        assert holder is not None
        assert str(holder) == "another run"
    (tmp_path / OWNER_NAME).write_text(record)
    FolderLock.acquire(tmp_path, "run-3").release()


def test_a_file_system_without_locks_is_said_and_not_worked_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ConfigError, match=r"cannot be locked: .* name an --output on a local disk"):
        FolderLock.acquire(tmp_path, "run-1")


@pytest.mark.parametrize("output", ["out", "out/calls", "out/calls/today"])
def test_a_file_where_the_output_folder_should_be_is_named_with_what_to_do(
    output: str, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError) as refused:
        FolderLock.acquire(tmp_path / output, "run-1")
    assert refused.value.message == (
        f"{tmp_path / output} cannot be the output folder: {tmp_path / 'out'} is a file. Move that file away, or "
        "name another --output."
    )
    assert (tmp_path / "out").read_text() == "mine"


def test_the_lock_holds_when_its_record_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "NewFile", full)
        held = FolderLock.acquire(tmp_path, "run-1")
    assert "No space left on device" in caplog.text
    with pytest.raises(FolderInUse, match="another run"):
        FolderLock.acquire(tmp_path, "run-2")
    held.release()


def test_a_folder_that_may_only_be_read_tells_its_holder_by_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with FolderLock.acquire(tmp_path, "run-1"):
        monkeypatch.setattr(filelock.FileLock, "acquire", denied)
        holder = FolderLock.holder(tmp_path)
        assert holder is not None
        assert holder.run_id == "run-1"
        record = json.loads((tmp_path / OWNER_NAME).read_text())
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (tmp_path / OWNER_NAME).write_text(json.dumps(record | {"pid": dead.pid}))
        assert FolderLock.holder(tmp_path) is None


def test_a_refusal_comes_soon(tmp_path: Path) -> None:
    with FolderLock.acquire(tmp_path, "run-1"):
        began_s = time.monotonic()
        with pytest.raises(FolderInUse):
            FolderLock.acquire(tmp_path, "run-2")
        assert time.monotonic() - began_s < 5
