"""Replies that were paid for are kept when the output cannot be written, and come home once it can."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from audiobatch.errors import StorageError
from audiobatch.model import SavedFile
from audiobatch.storage.atomic_file import TEMPORARY_PREFIX
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.spool import Spool, SpoolEntry

FILES = [("audio/anna.wav", b"RIFF" + bytes(3000)), ("transcripts/anna.wav.txt", "Grüß Gott.\n".encode())]
RECORD = {"item_id": "anna.wav", "turn": 1, "status": "succeeded", "cost_usd": "0.0123", "parts": None}


@pytest.fixture
def output(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "outputs" / "calls")


@pytest.fixture
def spool(tmp_path: Path, output: LocalStorage) -> Spool:
    return Spool(output.root, base=tmp_path / "state")


def recorded_at_once(entry: SpoolEntry, saved: list[SavedFile]) -> None:
    pass


def everything_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kept_reply_comes_home_with_its_files_and_its_record(spool: Spool, output: LocalStorage) -> None:
    path = spool.add("anna.wav turn 1", FILES, RECORD)
    assert path.parent == spool.folder
    [entry] = Spool(output.root, base=spool.folder.parent.parent).entries()
    assert (entry.name, entry.path, entry.record, list(entry.files)) == (
        "anna.wav turn 1",
        path,
        RECORD,
        FILES,
    )
    recorded = []
    assert spool.replay(output, lambda entry, saved: recorded.append((entry.record, saved))) == [
        "anna.wav turn 1"
    ]
    assert everything_below(output.root) == dict(FILES)
    [(record, saved)] = recorded
    assert record == RECORD
    assert [(file.path, file.size_bytes) for file in saved] == [(path, len(data)) for path, data in FILES]
    assert not spool.folder.exists()
    assert spool.replay(output, recorded_at_once) == []


def test_an_entry_is_deleted_only_after_its_files_and_its_outcome_are_durable(
    spool: Spool, output: LocalStorage
) -> None:
    kept = spool.add("anna.wav turn 1", FILES, RECORD)

    def record(entry: Any, saved: Any) -> None:
        assert everything_below(output.root) == dict(FILES)
        assert kept.exists()
        raise StorageError("the ledger's disk is full")

    with pytest.raises(StorageError, match="the ledger's disk is full"):
        spool.replay(output, record)
    assert kept.exists()
    times = []
    spool.replay(output, lambda *_: times.append(kept.exists()))
    assert times == [True]
    assert not kept.exists()


def test_while_the_output_is_still_broken_every_reply_stays(
    spool: Spool, output: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        spool.add(f"item {number}", [(f"audio/{number}.wav", b"x")], {})
    tries = []

    def full(files: Any) -> Any:
        tries.append(files)
        if len(tries) == 2:
            raise StorageError("no space")
        return LocalStorage.write_many(output, files)

    monkeypatch.setattr(output, "write_many", full)
    home = []
    with pytest.raises(StorageError, match="no space"):
        spool.replay(output, lambda entry, _: home.append(entry.name))
    assert home == ["item 0"]
    assert [entry.name for entry in spool.entries()] == ["item 1", "item 2"]


def test_entries_come_oldest_first_and_one_name_twice_is_two_replies(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)  # a clock that stands still
    for number in range(12):
        spool.add("same item", [], {"n": number})
    assert [entry.record["n"] for entry in spool.entries()] == list(range(12))


def test_many_threads_keep_at_once(spool: Spool) -> None:
    with ThreadPoolExecutor(16) as threads:
        paths = list(threads.map(lambda n: spool.add(f"item {n}", [("a", b"%d" % n)], {"n": n}), range(100)))
    assert len(set(paths)) == 100
    assert sorted(entry.record["n"] for entry in spool.entries()) == list(range(100))


def test_a_damaged_entry_stays_where_it_is_and_the_others_come_home(
    spool: Spool, output: LocalStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [spool.add(f"item {n}", [(f"audio/{n}.wav", b"reply %d" % n)], {}) for n in range(4)]
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    kept[1].write_bytes(b"not a reply")
    kept[2].write_bytes(kept[2].read_bytes().replace(b"reply 2", b"REPLY 2"))
    assert spool.replay(output, recorded_at_once) == ["item 3"]
    assert [path.exists() for path in kept] == [True, True, True, False]
    assert caplog.text.count("cannot be read") == 3


def test_a_kept_path_that_leaves_the_output_is_refused(
    spool: Spool, output: LocalStorage, tmp_path: Path
) -> None:
    spool.add("hostile", [("../../escaped", b"x")], {})
    with pytest.raises(StorageError, match="refused"):
        spool.replay(output, recorded_at_once)
    assert not (tmp_path / "escaped").exists()


def test_any_name_and_any_text_can_be_kept(spool: Spool) -> None:
    names = ["", "a/../b", "x" * 5000, "new\nline", "\u202egpj", "bad\udcff"]
    for name in names:
        spool.add(name, [], {"transcript": "Zeile\n\u2028\x00 \ud800", name: [1, 2.5, True]})
    assert [entry.name for entry in spool.entries()] == names
    assert [entry.record["transcript"] for entry in spool.entries()] == ["Zeile\n\u2028\x00 \ud800"] * len(
        names
    )


def test_a_record_that_is_not_json_is_a_mistake_of_the_caller(spool: Spool) -> None:
    with pytest.raises(TypeError):
        spool.add("a", [], {"when": object()})
    assert list(spool.entries()) == []


def test_every_output_has_a_spool_of_its_own_in_the_user_s_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_state_path", lambda *_, **__: tmp_path / "state")
    one, same, other = Spool(tmp_path / "a"), Spool(tmp_path / "x" / ".." / "a"), Spool(tmp_path / "b")
    assert one.folder == same.folder != other.folder
    assert one.folder.parent == tmp_path / "state" / "spool"
    assert Spool("az://account/out").folder == Spool("az://account/out").folder
    assert Spool("az://account/out").output == "az://account/out"
    one.add("a", [], {})
    assert list(other.entries()) == []
    [entry] = one.folder.iterdir()
    assert json.loads(entry.read_bytes().partition(b"\n")[0])["output"] == str(tmp_path / "a")


@pytest.mark.skipif(os.name != "posix", reason="permission bits of POSIX")
def test_kept_replies_are_their_user_s_alone(spool: Spool) -> None:
    umask = os.umask(0)
    try:
        path = spool.add("a", FILES, RECORD)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert spool.folder.stat().st_mode & 0o777 == 0o700


def test_asking_an_empty_spool_makes_nothing(spool: Spool, output: LocalStorage, tmp_path: Path) -> None:
    assert list(spool.entries()) == []
    assert spool.replay(output, recorded_at_once) == []
    spool.release()
    assert list(tmp_path.iterdir()) == []


def test_room_that_was_reserved_is_given_back(spool: Spool) -> None:
    spool.reserve(2_500_000)
    assert sum(p.stat().st_size for p in spool.folder.iterdir()) == 2_500_000
    spool.add("a", FILES, RECORD)
    assert (spool.folder / "reserve").exists()
    spool.release()
    assert [entry.name for entry in spool.entries()] == ["a"]
    assert not (spool.folder / "reserve").exists()
    spool.reserve(1000)
    (spool.folder / f"{TEMPORARY_PREFIX}1").write_bytes(b"half")
    next(spool.folder.glob("*.reply")).unlink()
    spool.release()
    assert not spool.folder.exists()
    spool.add("b", FILES, RECORD)
    assert [entry.name for entry in spool.entries()] == ["b"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_on_one_full_disk_the_replies_in_flight_fit_into_the_reserved_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        output, spool = LocalStorage(disk / "out"), Spool(disk / "out", base=disk / "state")
        spool.reserve(1_000_000)
        with pytest.raises(StorageError, match="no space"):
            output.write("filler", (bytes(10_000) for _ in range(10_000)))
        (disk / "filler").write_bytes(bytes(output.free_bytes() or 0))
        with pytest.raises(StorageError, match="no space"):
            output.write_many([("audio/0.wav", bytes(100_000))])
        for number in range(8):
            spool.add(f"item {number}", [(f"audio/{number}.wav", bytes([number]) * 100_000)], {"n": number})
        (disk / "filler").unlink()
        home = spool.replay(output, recorded_at_once)
        assert home == [f"item {number}" for number in range(8)]
        assert output.read("audio/7.wav") == bytes([7]) * 100_000
        with pytest.raises(StorageError, match="no space"):
            spool.reserve(9_000_000)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_replies_that_are_kept_at_once_do_not_take_each_other_s_room(kind: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if kind == "ext4":
        image = tmp_path / "image"
        image.write_bytes(bytes(24 << 20))
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        if subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=False).returncode:
            pytest.skip("no loop device here")
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    try:
        for number in range(4):
            spool = Spool(f"/nowhere/{number}", base=disk)
            spool.reserve(3_000_000)
            with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as fill:
                while True:
                    fill.write(bytes(65_536))
            with ThreadPoolExecutor(8) as threads:
                kept = [
                    threads.submit(spool.add, f"item {n}", [("a.wav", os.urandom(200_000))], {"n": n})
                    for n in range(8)
                ]
            assert all(entry.exception() is None for entry in kept)
            assert len(list(spool.entries())) == 8
            (disk / "fill").unlink()
            shutil.rmtree(spool.folder)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_room_that_somebody_else_frees_in_time_is_waited_for(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = time.monotonic() + 0.5
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if time.monotonic() < free:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    spool.add("a", FILES, RECORD)
    assert [entry.name for entry in spool.entries()] == ["a"]


def test_the_room_set_aside_grows_and_is_used_up_by_what_is_kept(spool: Spool) -> None:
    spool.reserve(1_000_000)
    spool.reserve(500_000)
    assert spool.reserved_bytes == 1_000_000
    spool.reserve(2_500_000)
    assert spool.reserved_bytes == 2_500_000


def test_when_it_cannot_be_kept_either_the_message_says_where(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr("audiobatch.storage.spool.FULL_DISK_S", 0.3)
    with pytest.raises(StorageError, match=rf"cannot write {spool.folder}.*no space is left"):
        spool.add("a", FILES, RECORD)


KILLED_PROGRAM = """
import os, signal, sys
from pathlib import Path
from audiobatch.storage.spool import Spool, SpoolEntry
from audiobatch.storage.local import LocalStorage

base, steps, act = Path(sys.argv[1]), [int(sys.argv[2])], sys.argv[3]
output, spool = LocalStorage(base / "out"), Spool(base / "out", base=base / "state")
ledger = base / "ledger"

def record(entry, saved):
    with ledger.open("a") as file:
        file.write(entry.name + "\\n")

if act == "home":
    spool.add("reply", [("audio/a.wav", b"paid" * 1000)], {"n": 1})

def killing(call):
    def called(*args, **named):
        steps[0] -= 1
        if steps[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **named)
    return called

for name in ("open", "write", "fsync", "replace", "mkdir", "close", "unlink", "rmdir"):
    setattr(os, name, killing(getattr(os, name)))
if act == "home":
    spool.replay(output, record)
else:
    spool.add("reply", [("audio/a.wav", b"paid" * 1000)], {"n": 1})
print("done", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("act", ["keep", "home"])
def test_a_kill_at_any_call_loses_no_kept_reply(tmp_path: Path, act: str) -> None:
    def attempt(ordinal: int) -> bool:
        base = tmp_path / str(ordinal)
        base.mkdir()
        command = [sys.executable, "-c", KILLED_PROGRAM, str(base), str(ordinal), act]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr
        output, spool = LocalStorage(base / "out"), Spool(base / "out", base=base / "state")
        ledger = (base / "ledger").read_text().split() if (base / "ledger").exists() else []
        names = spool.replay(output, lambda entry, _: ledger.append(entry.name))
        if act == "home" or ended.stdout:
            assert output.read("audio/a.wav") == b"paid" * 1000
            assert set(ledger) == {"reply"}
        else:
            assert names in ([], ["reply"])
        output.sweep_temporary()
        spool.release()
        left = {path for path in everything_below(base) if path != "ledger"}
        assert left <= {"out/audio/a.wav"}
        return bool(ended.stdout)

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(attempt, range(36)))
    assert ends[-1]
    assert not ends[0]
    assert ends.count(False) > 8


def test_runs_that_share_a_spool_set_aside_room_of_their_own(tmp_path: Path) -> None:
    first, second = (Spool(tmp_path / "out", base=tmp_path / "state") for _ in range(2))
    first.share("first", alone=True)
    second.share("second", alone=False)
    first.reserve(1000)
    second.reserve(2000)
    second.release()
    assert [path.name for path in first.folder.iterdir()] == ["reserve.first"]
    third = Spool(tmp_path / "out", base=tmp_path / "state")
    third.share("third", alone=True)
    assert not list(third.folder.iterdir()), "what a dead run set aside is freed"
    first.add("a", FILES, RECORD)
    assert [entry.name for entry in third.entries()] == ["a"]
