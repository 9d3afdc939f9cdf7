"""What every storage promises, on real ones: a local folder, memory, Azurite and an S3 server."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audiobatch.address import Address
from audiobatch.errors import LeaseLost, StorageError
from audiobatch.storage.local import LocalStorage, Storage
from audiobatch.storage.object_stores import PAGE_OBJECTS
from audiobatch.storage.remote import PIECE_BYTES, FsspecStorage

pytestmark = pytest.mark.timeout(600)  # the first use installs Azurite

REPLY = [
    ("audio/calls/anna.wav", b"RIFF" + bytes(5000)),
    ("transcripts/calls/anna.wav.txt", b"Good morning."),
]
REMOTE = ("memory", "azurite", "s3")


@pytest.fixture(params=["local", *REMOTE])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    if request.param == "local":
        return LocalStorage(tmp_path / "out" / "run 1")
    return remote(request, monkeypatch)


@pytest.fixture(params=REMOTE)
def objects(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FsspecStorage:
    return remote(request, monkeypatch)


def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FsspecStorage:
    """A prefix of its own in a container of its own."""
    name = f"out-{uuid.uuid4().hex[:12]}"
    if request.param == "memory":
        return FsspecStorage(Address("memory", f"{name}/run 1"))
    server = request.getfixturevalue(request.param)
    for variable, value in server.variables().items():
        monkeypatch.setenv(variable, value)
    return FsspecStorage(server.make(name) / "run 1")


def everything(storage: Storage) -> dict[str, bytes]:
    return {path: storage.read(path) for path in storage.walk()}


def test_what_is_written_is_there_with_its_size_and_hash(storage: Storage) -> None:
    saved = storage.write("audio/anna.wav", b"RIFFdata")
    assert (saved.path, saved.size_bytes) == ("audio/anna.wav", 8)
    assert saved.sha256 == hashlib.sha256(b"RIFFdata").hexdigest() == storage.sha256("audio/anna.wav")
    assert storage.read("audio/anna.wav") == b"RIFFdata"
    assert storage.size("audio/anna.wav") == 8
    assert storage.exists("audio/anna.wav")
    assert not storage.exists("audio/ben.wav")
    assert not storage.exists("audio")


@pytest.mark.parametrize("replacing", [True, False])
def test_a_reply_s_files_are_written_together(storage: Storage, replacing: bool) -> None:
    saved = storage.write_many(REPLY, replacing=replacing)
    assert [file.path for file in saved] == [path for path, _ in REPLY]
    assert [file.sha256 for file in saved] == [hashlib.sha256(data).hexdigest() for _, data in REPLY]
    assert everything(storage) == dict(REPLY)


@pytest.mark.parametrize(
    "data",
    [b"", memoryview(b"abcdef")[1:4], bytearray(b"xyz"), iter([b"ab", b"", b"c"]), (b"%d" % i for i in range(99))],
    ids=["nothing", "view", "bytearray", "iterator", "generator"],
)  # fmt: skip
def test_bytes_views_and_streams_are_written_alike(
    tmp_path: Path, data: bytes | memoryview | Iterable[bytes]
) -> None:
    # Parametrised by data: an iterator can be used once, so the storages take turns on copies.
    content = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)
    for storage in (
        LocalStorage(tmp_path / "out"),
        FsspecStorage(Address("memory", f"out-{uuid.uuid4().hex}")),
    ):
        for given in (content, iter([content[:1], content[1:]])):
            saved = storage.write("a.bin", given)
            assert storage.read("a.bin") == content
            assert (saved.size_bytes, saved.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_second_write_replaces_the_first(storage: Storage) -> None:
    storage.write("audio/a.wav", b"old")
    storage.write("audio/a.wav", b"new!")
    storage.write_many([("audio/a.wav", b"newest")])
    assert everything(storage) == {"audio/a.wav": b"newest"}


def test_a_stream_that_fails_leaves_the_old_file_and_its_own_error(storage: Storage) -> None:
    storage.write("a.bin", b"old")

    def stream() -> Iterator[bytes]:
        yield b"new"
        raise FileNotFoundError("the input went away")

    with pytest.raises(FileNotFoundError, match="the input went away"):
        storage.write("a.bin", stream())
    assert everything(storage) == {"a.bin": b"old"}


def test_a_view_is_replaced_only_when_it_is_complete(storage: Storage) -> None:
    with storage.open_text_atomic("manifest.csv", encoding="utf-8-sig") as text:
        text.write("item_id,status\r\n")
    assert storage.read("manifest.csv") == b"\xef\xbb\xbfitem_id,status\r\n"

    def interrupt() -> None:
        with storage.open_binary_atomic("manifest.csv") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert everything(storage) == {"manifest.csv": b"\xef\xbb\xbfitem_id,status\r\n"}


def test_a_large_view_streams(storage: Storage) -> None:
    whole = hashlib.sha256()
    with storage.open_binary_atomic("big.bin") as stream:
        for number in range(3 * PIECE_BYTES // 1_000_000):
            block = bytes([number]) * 1_000_000
            whole.update(block)
            stream.write(block)
    assert storage.size("big.bin") == 3 * PIECE_BYTES // 1_000_000 * 1_000_000
    assert storage.sha256("big.bin") == whole.hexdigest()


def test_moving_never_replaces(storage: Storage) -> None:
    storage.write("audio/a.wav", b"first")
    storage.move("audio/a.wav", "versions/1/audio/a.wav")
    storage.write("audio/a.wav", b"second")
    with pytest.raises(StorageError, match="exists already"):
        storage.move("audio/a.wav", "versions/1/audio/a.wav")
    assert everything(storage) == {"audio/a.wav": b"second", "versions/1/audio/a.wav": b"first"}
    with pytest.raises(StorageError, match=r"cannot move .*it is not there"):
        storage.move("audio/none.wav", "versions/2/audio/none.wav")


def test_deleting_twice_is_as_deleting_once(storage: Storage) -> None:
    storage.write("audio/a.wav", b"x")
    storage.delete("audio/a.wav")
    storage.delete("audio/a.wav")
    assert not storage.exists("audio/a.wav")
    storage.prune("audio")
    assert everything(storage) == {}


@pytest.mark.parametrize("ask", ["read", "size", "sha256"])
def test_asking_for_a_file_that_is_not_there_says_which(storage: Storage, ask: str) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none\.wav: it is not there"):
        getattr(storage, ask)("audio/none.wav")


@pytest.mark.parametrize(
    "path",
    ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\\b", "C:/x", "a\0b"],
)
def test_no_path_leaves_the_root(storage: Storage, path: str) -> None:
    for act in (storage.read, storage.delete, storage.exists, lambda one: storage.write(one, b"x")):
        with pytest.raises(StorageError, match="refused"):
            act(path)


def test_names_of_any_kind_come_back_as_they_were(storage: Storage) -> None:
    names = [
        *("audio/é.wav", "audio/日本 語/a b.wav", "audio/50%25.wav", "audio/a#b.wav", "audio/a+b&c=d.wav"),
        *("audio/it's.wav", "audio/-x~.wav", "audio/[1].wav", "audio/a@b;c.wav"),
    ]  # fmt: skip
    for name in names:
        storage.write(name, name.encode())
    assert everything(storage) == {name: name.encode() for name in names}


def test_a_walk_names_files_below_a_folder_alone(storage: Storage) -> None:
    for path in ("audio/a.wav", "audio/b/c.wav", "audio2/d.wav", "manifest.csv"):
        storage.write(path, b"x")
    assert list(storage.walk("audio")) == ["audio/a.wav", "audio/b/c.wav"]
    assert list(storage.walk("nowhere")) == []
    assert sorted(storage.walk()) == ["audio/a.wav", "audio/b/c.wav", "audio2/d.wav", "manifest.csv"]


def test_a_probe_leaves_nothing(storage: Storage) -> None:
    storage.probe_writable()
    assert everything(storage) == {}
    assert storage.sweep_temporary() == 0


def test_readers_never_see_half_a_file(storage: Storage) -> None:
    contents = [bytes([n]) * 200_000 for n in range(4)]
    storage.write("a.bin", contents[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(storage.read("a.bin"))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        for _ in range(5):
            for content in contents:
                storage.write("a.bin", content)
        stop.set()
        reading.result()
    assert seen <= set(contents)


def test_many_threads_write_at_once(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: storage.write_many([(f"audio/{n}.wav", b"%d" % n)] * 1), range(40)))
    assert everything(storage) == {f"audio/{n}.wav": b"%d" % n for n in range(40)}


# --- what only object stores have


def test_a_put_on_condition_keeps_what_is_in_the_way(objects: FsspecStorage) -> None:
    objects.write("audio/a.wav", b"of another run")
    saved = objects.write_many([("audio/a.wav", b"mine"), ("t/a.txt", b"words")], replacing=False)
    assert saved[0].sha256 == hashlib.sha256(b"mine").hexdigest()
    assert everything(objects) == {
        "audio/a.wav": b"mine",
        "t/a.txt": b"words",
        "versions/unrecorded/audio/a.wav": b"of another run",
    }


def test_what_another_run_has_written_since_is_not_replaced(objects: FsspecStorage) -> None:
    objects.write("audio/a.wav", b"of who took over")

    def lost() -> None:
        raise LeaseLost("another run has it")

    with pytest.raises(LeaseLost):
        objects.write_many(
            [("audio/a.wav", b"late"), ("t/a.txt", b"late")], replacing=False, check_lease=lost
        )
    assert objects.read("audio/a.wav") == b"of who took over"
    objects.write_many([("audio/b.wav", b"free")], replacing=False, check_lease=lost)
    assert objects.read("audio/b.wav") == b"free"


def test_a_put_on_condition_that_finds_its_own_bytes_is_done(objects: FsspecStorage) -> None:
    for _ in range(2):
        objects.write_many(REPLY, replacing=False)
    assert everything(objects) == dict(REPLY)


def test_a_version_changes_with_every_write(objects: FsspecStorage) -> None:
    seen = set()
    for content in (b"aaa", b"bbb", b"ccc"):  # of one size, within a second
        objects.write("a.txt", content)
        found = objects.stat("a.txt")
        assert found is not None
        assert [entry for entry in objects.entries() if entry.path == "a.txt"] == [found]
        seen.add(found.version)
    assert len(seen) == 3


def test_a_small_object_is_fetched_and_hashed_in_one_go(objects: FsspecStorage, tmp_path: Path) -> None:
    objects.write("a.wav", b"RIFF" * 1000)
    [listed] = objects.entries()
    assert objects.fetch("a.wav", tmp_path / "a", listed) == hashlib.sha256(b"RIFF" * 1000).hexdigest()
    assert (tmp_path / "a").read_bytes() == b"RIFF" * 1000


def test_listings_longer_than_a_page_are_whole(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.param = "s3"
    storage = remote(request, monkeypatch)
    monkeypatch.setattr("audiobatch.storage.object_stores.PAGE_OBJECTS", 7)
    assert PAGE_OBJECTS > 7
    names = sorted(f"d{n % 3}/{n:03}.txt" for n in range(30))
    for name in names:
        storage.write(name, b"x")
    assert list(storage.walk()) == names
    assert list(storage.walk("d1")) == [name for name in names if name.startswith("d1/")]


def test_pages_of_blob_storage_are_whole(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.param = "azurite"
    storage = remote(request, monkeypatch)
    monkeypatch.setattr("audiobatch.storage.object_stores.PAGE_OBJECTS", 7)
    names = sorted(f"d{n % 3}/{n:03}.txt" for n in range(30))
    for name in names:
        storage.write(name, b"x")
    assert list(storage.walk()) == names
    assert list(storage.walk("d1")) == [name for name in names if name.startswith("d1/")]
