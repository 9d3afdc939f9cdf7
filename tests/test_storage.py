"""Files in the output folder: whole or not at all, durable when the call returns, never outside the root."""

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from audiobatch.errors import ConfigError, StorageError
from audiobatch.storage import atomic_file
from audiobatch.storage.atomic_file import TEMPORARY_PREFIX
from audiobatch.storage.local import LocalStorage, Storage

REPLY = [
    ("audio/calls/anna.wav", b"RIFF" + bytes(5000)),
    ("transcripts/calls/anna.wav.txt", b"Good morning."),
]
CAN_MOUNT = sys.platform == "linux" and os.geteuid() == 0
needs_mount = pytest.mark.skipif(not CAN_MOUNT, reason="mounting a small disk needs root on Linux")
posix = pytest.mark.skipif(os.name != "posix", reason="links, signals and permission bits of POSIX")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "calls"


@pytest.fixture(params=[LocalStorage])
def storage(request: pytest.FixtureRequest, root: Path) -> Storage:
    """Every kind of storage passes the tests that ask for this one."""
    made: Storage = request.param(root)
    return made


def files_in(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@contextmanager
def small_disk(at: Path, size_kb: int) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def _let_pass(number: int, name: str) -> None:
    pass


class Calls:
    """The system's calls that change a disk, recorded by name and file; `before` may raise, or kill."""

    NAMES = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "close")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.seen: list[tuple[str, str]] = []
        self.before: Callable[[int, str], None] = _let_pass
        self._names: dict[int, str] = {}
        self._root = str(root)
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._recording(name, getattr(os, name)))

    def _recording(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(first: Any, *rest: Any, **named: Any) -> Any:
            path = self._names.get(first, "?") if isinstance(first, int) else os.fspath(first)
            if not str(path).startswith(self._root):
                return call(first, *rest, **named)
            creating = name == "open" and rest and rest[0] & os.O_CREAT
            if name != "close" and (name != "open" or creating):
                shown = os.path.relpath(path, self._root)
                label = re.sub(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{16}", "TEMPORARY", shown)
                if name in {"replace", "rename"}:
                    label += " -> " + os.path.relpath(os.fspath(rest[0]), self._root)
                self.before(len(self.seen), name)
                self.seen.append(("create" if name == "open" else name, label))
            result = call(first, *rest, **named)
            if name == "open":
                self._names[result] = path
            elif name == "close":
                self._names.pop(first, None)
            return result

        return recorded


# --- what every storage does


def test_what_is_written_is_there_with_its_size_and_hash(storage: Storage) -> None:
    saved = storage.write("audio/anna.wav", b"RIFFdata")
    assert (saved.path, saved.size_bytes) == ("audio/anna.wav", 8)
    assert saved.sha256 == hashlib.sha256(b"RIFFdata").hexdigest() == storage.sha256("audio/anna.wav")
    assert storage.read("audio/anna.wav") == b"RIFFdata"
    assert storage.size("audio/anna.wav") == 8
    assert storage.exists("audio/anna.wav")
    assert not storage.exists("audio/ben.wav")
    assert not storage.exists("audio")


def test_a_reply_s_files_are_written_together(storage: Storage) -> None:
    saved = storage.write_many(REPLY)
    assert [file.path for file in saved] == [path for path, _ in REPLY]
    assert [storage.read(file.path) for file in saved] == [data for _, data in REPLY]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        memoryview(b"abcdef")[1:4],
        bytearray(b"xyz"),
        iter([b"ab", b"", b"c"]),
        (b"%d" % i for i in range(99)),
    ],
)
def test_bytes_views_and_streams_are_written_alike(
    root: Path, data: bytes | memoryview | Iterable[bytes]
) -> None:
    storage = LocalStorage(root)
    saved = storage.write("a.bin", data)
    content = storage.read("a.bin")
    assert (saved.size_bytes, saved.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_second_write_replaces_the_first(storage: Storage) -> None:
    storage.write("audio/a.wav", b"old")
    storage.write("audio/a.wav", b"new")
    assert storage.read("audio/a.wav") == b"new"


def test_a_stream_that_fails_leaves_the_old_file_and_its_own_error(storage: Storage, root: Path) -> None:
    storage.write("a.bin", b"old")

    def stream() -> Iterator[bytes]:
        yield b"new"
        raise FileNotFoundError("the input went away")

    with pytest.raises(FileNotFoundError, match="the input went away"):
        storage.write("a.bin", stream())
    assert files_in(root) == {"a.bin": b"old"}


def test_a_view_is_replaced_only_when_it_is_complete(storage: Storage, root: Path) -> None:
    with storage.open_text_atomic("manifest.csv", encoding="utf-8-sig") as text:
        text.write("item_id,status\r\n")
    assert storage.read("manifest.csv") == b"\xef\xbb\xbfitem_id,status\r\n"

    def fail() -> None:
        with storage.open_text_atomic("manifest.csv") as text:
            text.write("half a line")
            Path("no such input").read_bytes()

    def interrupt() -> None:
        with storage.open_binary_atomic("manifest.csv") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(FileNotFoundError, match="no such input"):
        fail()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert files_in(root) == {"manifest.csv": b"\xef\xbb\xbfitem_id,status\r\n"}


def test_a_large_view_streams(storage: Storage) -> None:
    with storage.open_binary_atomic("big.bin") as stream:
        for _ in range(40):
            stream.write(b"x" * 100_000)
    assert storage.size("big.bin") == 4_000_000


def test_moving_makes_folders_and_never_replaces(storage: Storage) -> None:
    storage.write("audio/a.wav", b"first")
    storage.move("audio/a.wav", "versions/1/audio/a.wav")
    storage.write("audio/a.wav", b"second")
    with pytest.raises(StorageError, match="exists already"):
        storage.move("audio/a.wav", "versions/1/audio/a.wav")
    assert storage.read("versions/1/audio/a.wav") == b"first"
    assert storage.read("audio/a.wav") == b"second"
    with pytest.raises(StorageError, match=r"cannot move .*it is not there"):
        storage.move("audio/none.wav", "versions/2/audio/none.wav")


def test_deleting_twice_is_as_deleting_once(storage: Storage) -> None:
    storage.write("audio/a.wav", b"x")
    storage.delete("audio/a.wav")
    storage.delete("audio/a.wav")
    assert not storage.exists("audio/a.wav")


@pytest.mark.parametrize("ask", ["read", "size", "sha256"])
def test_asking_for_a_file_that_is_not_there_says_which(storage: Storage, ask: str) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none\.wav: it is not there"):
        getattr(storage, ask)("audio/none.wav")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "C:x",
        "C:/x",
        "a\0b",
    ],
)
def test_no_path_leaves_the_root(storage: Storage, tmp_path: Path, path: str) -> None:
    for act in (storage.read, storage.exists, storage.delete, lambda p: storage.write(p, b"x")):
        with pytest.raises(StorageError, match="refused"):
            act(path)
    with pytest.raises(StorageError, match="refused"):
        storage.move("a", path)
    assert files_in(tmp_path) == {}


def test_many_threads_write_into_one_new_folder(storage: Storage, root: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: storage.write(f"new/deep/er/{n}.txt", b"%d" % n), range(200)))
    assert files_in(root) == {f"new/deep/er/{n}.txt": b"%d" % n for n in range(200)}


def test_a_sweep_removes_temporary_files_and_nothing_else(storage: Storage, root: Path) -> None:
    storage.write("audio/a.wav", b"x")
    (root / "audio" / f"{TEMPORARY_PREFIX}0123").write_bytes(b"half")
    (root / f"{TEMPORARY_PREFIX}4567").write_bytes(b"")
    assert storage.sweep_temporary(older_than_s=60) == 0
    assert storage.sweep_temporary() == 2
    assert storage.sweep_temporary() == 0
    assert files_in(root) == {"audio/a.wav": b"x"}


def test_an_old_temporary_file_is_swept_beside_a_young_one(storage: Storage, root: Path) -> None:
    storage.write("a", b"x")
    for name, age_s in (("old", 3600), ("young", 0)):
        file = root / (TEMPORARY_PREFIX + name)
        file.write_bytes(b"")
        os.utime(file, (time.time() - age_s,) * 2)
    assert storage.sweep_temporary(older_than_s=600) == 1
    assert (root / f"{TEMPORARY_PREFIX}young").exists()


# --- before money is spent


def test_the_probe_makes_the_folder_and_leaves_nothing_in_it(storage: Storage, root: Path) -> None:
    storage.probe_writable()
    assert root.is_dir()
    assert list(root.iterdir()) == []


def test_an_output_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match=r"out is a file; name a folder"):
        LocalStorage(tmp_path / "out").probe_writable()
    with pytest.raises(
        ConfigError, match=re.escape(f"{tmp_path / 'out'} is a file, where a folder is needed")
    ):
        LocalStorage(tmp_path / "out" / "deeper").probe_writable()
    assert (tmp_path / "out").read_text() == "mine"


@posix
def test_an_output_without_permission_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o755)
    (tmp_path / "out" / "existing").mkdir(mode=0o755)
    with as_nobody(tmp_path):
        for root in (tmp_path / "out" / "new", tmp_path / "out" / "existing"):
            with pytest.raises(ConfigError, match=r"permission is missing\. Allow writing there"):
                LocalStorage(root).probe_writable()


@contextmanager
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Permission bits say nothing to root, so as another user."""
    if os.geteuid() != 0:
        for folder in (tmp_path / "out" / "existing", tmp_path / "out"):
            folder.chmod(0o500)
        yield
        return
    for folder in tmp_path.parents[:-2]:
        if folder.stat().st_uid == 0 and "pytest" in folder.name:
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_free_space_is_known_before_the_folder_is_there(storage: Storage, tmp_path: Path) -> None:
    free = storage.free_bytes()
    assert free is not None
    assert abs(free - shutil.disk_usage(tmp_path).free) < 1 << 30


# --- links


@posix
def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path) -> None:
    storage = LocalStorage(root)
    storage.write("audio/a.wav", b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.wav").write_bytes(b"theirs")
    (root / "linked").symlink_to(outside)
    for act in (
        storage.read,
        storage.delete,
        lambda p: storage.write(p, b"x"),
        lambda p: storage.move("audio/a.wav", p),
    ):
        for path in ("linked/a.wav", "linked/new.wav", "linked/deep/new.wav"):
            with pytest.raises(StorageError, match="through a link"):
                act(path)
    (root / "audio" / "b.wav").symlink_to(outside / "a.wav")
    storage.write("audio/b.wav", b"ours")
    assert not (root / "audio" / "b.wav").is_symlink()
    assert files_in(outside) == {"a.wav": b"theirs"}


@posix
def test_a_folder_that_becomes_a_link_in_mid_run_is_noticed(root: Path, tmp_path: Path) -> None:
    storage = LocalStorage(root)
    storage.write("audio/a.wav", b"x")
    shutil.rmtree(root / "audio")
    (tmp_path / "outside").mkdir()
    (root / "audio").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="through a link"):
        storage.write("audio/a.wav", b"x")
    assert files_in(tmp_path / "outside") == {}


@posix
def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    LocalStorage(tmp_path / "out").write("audio/a.wav", b"x")
    assert files_in(tmp_path / "disk") == {"audio/a.wav": b"x"}


@posix
def test_a_sweep_does_not_follow_links(root: Path, tmp_path: Path) -> None:
    storage = LocalStorage(root)
    storage.write("a", b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / f"{TEMPORARY_PREFIX}1").write_bytes(b"another's")
    (root / "linked").symlink_to(tmp_path / "outside")
    assert storage.sweep_temporary() == 0


# --- durability: the order of the system's calls


@posix
def test_bytes_are_flushed_before_the_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").mkdir()
    storage = LocalStorage(tmp_path / "r" / "out")
    calls = Calls(monkeypatch, tmp_path / "r")
    storage.write_many(REPLY)
    assert calls.seen == [
        ("mkdir", "out"),
        ("fsync", "."),
        ("mkdir", "out/audio"),
        ("fsync", "out"),
        ("mkdir", "out/audio/calls"),
        ("fsync", "out/audio"),
        ("fsync", "out/audio"),
        ("fsync", "out"),
        ("create", "out/audio/calls/TEMPORARY"),
        ("write", "out/audio/calls/TEMPORARY"),
        ("fsync", "out/audio/calls/TEMPORARY"),
        ("mkdir", "out/transcripts"),
        ("fsync", "out"),
        ("mkdir", "out/transcripts/calls"),
        ("fsync", "out/transcripts"),
        ("fsync", "out/transcripts"),
        ("fsync", "out"),
        ("create", "out/transcripts/calls/TEMPORARY"),
        ("write", "out/transcripts/calls/TEMPORARY"),
        ("fsync", "out/transcripts/calls/TEMPORARY"),
        ("replace", "out/audio/calls/TEMPORARY -> out/audio/calls/anna.wav"),
        ("replace", "out/transcripts/calls/TEMPORARY -> out/transcripts/calls/anna.wav.txt"),
        ("fsync", "out/audio/calls"),
        ("fsync", "out/transcripts/calls"),
    ]
    calls.seen.clear()
    storage.write_many([("audio/calls/b.wav", b"1"), ("audio/calls/b.t2.wav", b"2")])
    assert [name for name, _ in calls.seen] == ["create", "write", "fsync"] * 2 + ["replace"] * 2 + ["fsync"]


@posix
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
@pytest.mark.parametrize("act", ["write", "view", "move", "delete"])
def test_after_a_power_cut_everything_that_was_acknowledged_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """A disk that forgets all that was not flushed, cut after every call."""
    disk = ForgetfulDisk(monkeypatch, tmp_path / "r")
    storage = LocalStorage(tmp_path / "r" / "out")
    storage.write("audio/old.wav", b"old")
    assert disk.after_power_cut() == {"out/audio/old.wav": b"old"}
    before = disk.after_power_cut()
    disk.watch()
    if act == "write":
        storage.write_many([("audio/old.wav", b"new"), ("t/new/a.txt", b"text")])
        after = {"out/audio/old.wav": b"new", "out/t/new/a.txt": b"text"}
    elif act == "view":
        with storage.open_binary_atomic("audio/old.wav") as stream:
            stream.write(b"new")
        after = {"out/audio/old.wav": b"new"}
    elif act == "move":
        storage.move("audio/old.wav", "versions/1/old.wav")
        after = {"out/versions/1/old.wav": b"old"}
    else:
        storage.delete("audio/old.wav")
        after = {}
    assert disk.after_power_cut() == after
    disk.close()
    contents = {*before.values(), *after.values()}
    for image in disk.images:
        named = {path: data for path, data in image.items() if TEMPORARY_PREFIX not in path}
        assert set(named.values()) <= contents, "a name with bytes that were never flushed"
        if act in {"write", "view"}:
            assert "out/audio/old.wav" in named
        if act == "move":
            assert b"old" in named.values(), "lost between two folders"


class ForgetfulDisk:
    """Keeps of each file what was flushed of it, and of each folder the names at its last flush."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.images: list[dict[str, bytes]] = []
        self._watching = False
        self._names: dict[int, dict[str, int]] = {
            root.stat().st_ino: {}
        }  # inode of a folder -> its flushed names
        self._bytes: dict[int, bytes] = {}  # inode of a file -> its flushed bytes
        self._held: list[int] = []  # descriptors that keep deleted inodes from being used again
        for name in ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink"):
            monkeypatch.setattr(os, name, self._after(name, getattr(os, name)))

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def watch(self) -> None:
        self._watching = True

    def _after(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            result = call(*args, **named)
            if name == "fsync":
                self._flushed(args[0])
            if name == "open" and args[1] & os.O_CREAT:
                self._held.append(os.dup(result))
            if self._watching:
                self.images.append(self.after_power_cut())
            return result

        return called

    def _flushed(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.is_dir():
            self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._bytes[status.st_ino] = path.read_bytes()

    def after_power_cut(self) -> dict[str, bytes]:
        image: dict[str, bytes] = {}

        def walk(inode: int, path: str) -> None:
            for name, child in self._names.get(inode, {}).items():
                if child in self._bytes:
                    image[path + name] = self._bytes[child]
                elif child in self._names:
                    walk(child, f"{path}{name}/")
                elif not (self.root / path / name).is_dir():
                    image[path + name] = b"<nothing was flushed>"

        walk(self.root.stat().st_ino, "")
        return image


@posix
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="strace is Linux's")
def test_the_kernel_sees_the_same_order(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        assert not os.environ.get("CI"), "CI has strace"
        pytest.skip("strace is not installed")
    program = (
        "import sys; from pathlib import Path; from audiobatch.storage.local import LocalStorage; "
        "s = LocalStorage(Path(sys.argv[1])); s.write('audio/a.wav', b'x'); "
        "print('MARK', file=sys.stderr, flush=True); s.write('audio/a.wav', b'RIFF' * 1000)"
    )
    log = tmp_path / "log"
    calls = "trace=openat,write,fsync,rename,renameat,renameat2"
    command = [
        strace,
        "-f",
        "-y",
        "-o",
        str(log),
        "-e",
        calls,
        sys.executable,
        "-c",
        program,
        str(tmp_path / "out"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode and "ptrace" in ran.stderr.lower():
        pytest.skip("no permission to trace")
    assert ran.returncode == 0, ran.stderr
    lines = log.read_text(errors="replace").partition("MARK")[2].splitlines()
    ours = [line for line in lines if str(tmp_path / "out") in line and "O_DIRECTORY" not in line]
    steps = [re.search(r"(openat|write|fsync|rename\w*)\(", line)[1] for line in ours]  # type: ignore[index]
    assert [re.sub("rename.*", "rename", step) for step in steps] == [
        "openat",
        "write",
        "fsync",
        "rename",
        "fsync",
    ]
    assert TEMPORARY_PREFIX in ours[2]
    assert "O_EXCL" in ours[0]
    assert "O_NOFOLLOW" in ours[0]
    assert f"{tmp_path}/out/audio>" in ours[4]


# --- a disk that fails


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_a_failure_at_any_call_leaves_old_or_new_files_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """No space, read-only, broken, without permission, over quota: at every call in turn."""
    (tmp_path / "r").mkdir()
    new = [("audio/a.wav", b"new"), ("fresh/b.txt", b"new")]
    for ordinal in range(100):
        root = tmp_path / "r" / str(ordinal)
        storage = LocalStorage(root)
        storage.write("audio/a.wav", b"old")
        with monkeypatch.context() as patch:
            calls = Calls(patch, root)
            failed: list[str] = []

            def fail(number: int, name: str, nth: int = ordinal, failed: list[str] = failed) -> None:
                if number >= nth and name != "unlink":
                    failed.append(name)
                    raise OSError(code, os.strerror(code))

            calls.before = fail
            try:
                storage.write_many(new)
            except StorageError as exc:
                raised = exc
            else:
                assert not failed
                break
        assert isinstance(raised.__cause__, OSError)
        assert raised.__cause__.errno == code
        assert str(root) in raised.message
        assert "nothing that is recorded is lost" in raised.message
        left = files_in(root)
        assert left["audio/a.wav"] in {b"old", b"new"}
        assert set(left) <= {"audio/a.wav", "fresh/b.txt"}, "something is left over"
        storage.write_many(new)
        assert files_in(root) == dict(new)
    assert ordinal > 9


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_view_on_a_failing_disk_leaves_the_old_one_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "r").mkdir()
    storage = LocalStorage(tmp_path / "r")
    storage.write("manifest.csv", b"old")
    for ordinal in range(100):
        with monkeypatch.context() as patch:
            calls = Calls(patch, tmp_path / "r")

            def fail(number: int, name: str, nth: int = ordinal) -> None:
                if (number >= nth and name not in {"unlink", "open"}) or (number == nth == 0):
                    raise OSError(code, "")

            calls.before = fail
            try:
                with storage.open_text_atomic("manifest.csv") as text:
                    text.write("new")
            except StorageError:
                pass
            else:
                break
        left = files_in(tmp_path / "r")
        assert left.pop("manifest.csv") in {b"old", b"new"}
        assert left == {}
    assert ordinal >= 3


def test_a_write_that_takes_little_at_a_time_is_completed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    LocalStorage(root).write("a.bin", bytes(range(100)))
    assert (root / "a.bin").read_bytes() == bytes(range(100))


def test_bytes_that_did_not_arrive_are_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(root)
    storage.write("a.bin", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _, data: len(data))
        with pytest.raises(StorageError, match="0 of 3 bytes arrived"):
            storage.write("a.bin", b"new")
    assert files_in(root) == {"a.bin": b"old"}


def test_a_folder_whose_flush_the_file_system_does_not_know_is_no_failure(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(atomic_file, "sync_file", lambda _: None)
    monkeypatch.setattr(os, "fsync", unknown)
    LocalStorage(root).write("a/b.bin", b"x")
    assert (root / "a" / "b.bin").read_bytes() == b"x"


def test_a_folder_that_someone_deletes_in_mid_run_is_made_again(root: Path) -> None:
    storage = LocalStorage(root)
    storage.write("audio/calls/a.wav", b"x")
    shutil.rmtree(root / "audio")
    storage.write("audio/calls/b.wav", b"x")
    assert files_in(root) == {"audio/calls/b.wav": b"x"}


def test_an_output_that_vanishes_in_mid_run_is_not_made_again(root: Path) -> None:
    # An unmounted disk: what is written then would lie hidden below the mount point.
    storage = LocalStorage(root)
    storage.write("audio/a.wav", b"x")
    storage.write("b.txt", b"x")
    shutil.rmtree(root)
    for path in ("audio/a.wav", "b.txt", "new/c.txt"):
        with pytest.raises(
            StorageError, match=r"it is not there\. If the folder was moved or its disk unmounted"
        ):
            storage.write(path, b"x")
    assert not root.exists()


def test_a_folder_where_a_file_must_be_is_said(storage: Storage) -> None:
    storage.write("audio/a.wav/b.wav", b"x")
    with pytest.raises(StorageError, match="a folder has that name"):
        storage.write("audio/a.wav", b"x")
    with pytest.raises(StorageError, match=r"b\.wav is a file, where a folder is needed"):
        storage.write("audio/a.wav/b.wav/c.wav", b"x")
    assert storage.sweep_temporary() == 0


@needs_mount
def test_a_real_disk_that_fills_up_keeps_what_it_has(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        storage = LocalStorage(disk / "out")
        storage.probe_writable()
        acknowledged = {}

        def fill() -> None:
            for number in range(100):
                path = f"audio/{number}.wav"
                storage.write(path, bytes([number]) * 60_000)
                acknowledged[path] = bytes([number]) * 60_000

        def stream() -> None:
            with storage.open_text_atomic("audio/0.wav") as text:
                for _ in range(1000):
                    text.write("x" * 10_000)

        with pytest.raises(
            StorageError, match=r"no space is left on the disk\. Free some space, or name another"
        ):
            fill()
        assert len(acknowledged) > 5
        assert files_in(disk / "out") == acknowledged
        with pytest.raises(StorageError, match="no space"):
            stream()
        assert files_in(disk / "out") == acknowledged
        free = storage.free_bytes()
        assert free is not None
        assert free < 60_000


@needs_mount
def test_a_disk_without_any_space_is_said_before_money_is_spent(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk / "filler").write_bytes(bytes(64 * 1024 - 8192))
        storage = LocalStorage(disk / "out")
        with pytest.raises(OSError, match="No space"):
            (disk / "filler2").write_bytes(bytes(9000))
        with pytest.raises(ConfigError, match=r"cannot be used: .*no space is left"):
            storage.probe_writable()


@needs_mount
def test_a_disk_that_turns_read_only_in_mid_run_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        storage = LocalStorage(disk / "out")
        storage.write("audio/a.wav", b"kept")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(
            StorageError, match=r"the file system is read-only\. Mount it writable, or name another"
        ):
            storage.write("audio/b.wav", b"x")
        with pytest.raises(StorageError, match=r"cannot delete .*read-only"):
            storage.delete("audio/a.wav")
        with pytest.raises(ConfigError, match=r"the output folder cannot be used: .*read-only"):
            LocalStorage(disk / "out").probe_writable()
        assert storage.read("audio/a.wav") == b"kept"


# --- kill -9

KILLED_PROGRAM = """
import os, signal, sys
from pathlib import Path
from audiobatch.storage.local import LocalStorage

storage = LocalStorage(Path(sys.argv[1]))
storage.write("audio/a.wav", b"old" * 10000)
left = [int(sys.argv[2])]

def killing(call):
    def called(*args, **named):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **named)
    return called

for name in ("open", "write", "fsync", "replace", "mkdir", "close"):
    setattr(os, name, killing(getattr(os, name)))
storage.write_many([("audio/a.wav", b"new" * 10000), ("t/b.txt", b"text")])
with storage.open_text_atomic("manifest.csv") as text:
    text.write("row")
os._exit(0)
"""


@posix
def test_a_kill_at_any_call_leaves_whole_files_and_at_most_what_a_sweep_removes(tmp_path: Path) -> None:
    kills = 0

    def attempt(ordinal: int) -> bool:
        root = tmp_path / str(ordinal)
        command = [sys.executable, "-c", KILLED_PROGRAM, str(root), str(ordinal)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr
        left = files_in(root)
        temporary = [path for path in left if TEMPORARY_PREFIX in path]
        assert len(temporary) <= 2
        assert LocalStorage(root).sweep_temporary() == len(temporary)
        whole = files_in(root)
        assert whole.pop("audio/a.wav") in {b"old" * 10000, b"new" * 10000}
        assert whole.pop("t/b.txt", b"text") == b"text"
        assert whole.pop("manifest.csv", b"row") == b"row"
        assert whole == {}
        return ended.returncode == 0

    with ThreadPoolExecutor(2) as threads:
        for done in threads.map(attempt, range(40)):
            kills += not done
    assert 20 < kills < 40


def test_readers_never_see_half_a_file(root: Path) -> None:
    storage = LocalStorage(root)
    contents = [bytes([n]) * 200_000 for n in range(4)]
    storage.write("a.bin", contents[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add((root / "a.bin").read_bytes())

    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(read)
        for _ in range(20):
            for content in contents:
                storage.write("a.bin", content)
        stop.set()
        reading.result()
    assert seen <= set(contents)


@posix
def test_private_files_are_their_user_s_alone(root: Path) -> None:
    LocalStorage(root, private=True).write("sub/a.bin", b"x")
    assert [p.stat().st_mode & 0o777 for p in (root, root / "sub", root / "sub" / "a.bin")] == [
        0o700,
        0o700,
        0o600,
    ]
