"""Stores that throttle, cut connections, take half of an upload: nothing is lost, and nothing half counts."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from audiobatch.address import Address
from audiobatch.errors import ConfigError, StorageError
from audiobatch.storage.remote import PIECE_BYTES, FsspecStorage
from tests.remote_stores import BUSY, CUT, HALF, LOST, PASS, RESET, S3, THROTTLED, Azurite, Fate, Store, Wire

pytestmark = pytest.mark.timeout(600)

FATES = (THROTTLED, BUSY, RESET, HALF, LOST, CUT)


class Line:
    """A store behind a wire, and the same store without it."""

    def __init__(self, server: Store, wire: Wire, root: Address, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.wire, self.monkeypatch = server, wire, monkeypatch
        self.root = root

    def storage(self, *, direct: bool = False, patience_s: float = 60.0) -> FsspecStorage:
        for name, value in self.server.variables(None if direct else self.wire.port).items():
            self.monkeypatch.setenv(name, value)
        return FsspecStorage(self.root, patience_s=patience_s)


@pytest.fixture(params=["azurite", "s3"])
def line(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    server = request.getfixturevalue(request.param)
    for name, value in server.variables().items():
        monkeypatch.setenv(name, value)
    root = server.make(f"out-{uuid.uuid4().hex[:12]}") / "run"
    with Wire(server.port, lambda *_: PASS) as wire:
        yield Line(server, wire, root, monkeypatch)


def nth(number: int, fate: str) -> Fate:
    return lambda n, *_: fate if n == number else PASS


@pytest.mark.parametrize("fate", FATES)
def test_a_put_passes_through_one_fault_of_any_kind(line: Line, fate: str) -> None:
    storage = line.storage()
    content = random.Random(1).randbytes(300_000)
    line.wire.fate = nth(0, fate)
    saved = storage.write_many([("audio/a.wav", content)], replacing=False)
    assert line.wire.fates() == [fate]
    direct = line.storage(direct=True)
    assert {path: direct.read(path) for path in direct.walk()} == {"audio/a.wav": content}
    assert saved[0].size_bytes == len(content)


@pytest.mark.parametrize("fate", FATES)
def test_reading_and_listing_pass_through_one_fault_of_any_kind(
    line: Line, fate: str, tmp_path: Path
) -> None:
    content = random.Random(2).randbytes(PIECE_BYTES + 100_000)
    line.storage(direct=True).write("a.wav", content)
    for number in range(4):
        line.wire.seen.clear()
        line.wire.fate = nth(number, fate)
        storage = line.storage()
        assert [(entry.path, entry.size_bytes) for entry in storage.entries()] == [("a.wav", len(content))]
        storage.fetch("a.wav", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == content
        assert line.wire.fates() == [fate]


def test_many_puts_through_a_bad_wire_are_all_whole(line: Line) -> None:
    chance = random.Random(7)
    line.wire.fate = lambda *_: chance.choice(FATES) if chance.random() < 0.3 else PASS
    storage = line.storage()
    files = {f"audio/{n:02}.wav": chance.randbytes(1 + 5000 * n) for n in range(30)}
    for name, content in files.items():
        storage.write_many([(name, content), (f"t/{name}.txt", b"words")], replacing=False)
    assert len(line.wire.fates()) > 10
    direct = line.storage(direct=True)
    assert {path: direct.read(path) for path in direct.walk("audio")} == files
    assert not list(direct.walk("versions")), "what was its own was taken for another's"
    assert len(list(direct.walk())) == 60


@pytest.mark.parametrize("fate", [HALF, RESET, BUSY])
def test_a_store_that_stays_away_is_an_error_and_leaves_the_old_object(line: Line, fate: str) -> None:
    line.storage(direct=True).write("a.wav", b"old")
    line.wire.fate = lambda *_: fate
    storage = line.storage(patience_s=1.0)
    with pytest.raises(
        StorageError, match=r"cannot write \w+://out-\w+/run/a\.wav: the store did not answer"
    ):
        storage.write("a.wav", b"new" * 100_000)
    with pytest.raises(ConfigError, match="cannot be used"):
        storage.probe_writable()
    assert line.storage(direct=True).read("a.wav") == b"old"


def test_a_store_that_was_never_reached_is_given_up_soon(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiobatch.storage.object_stores.FIRST_PATIENCE_S", 0.3)
    for name, value in azurite.variables(port=9).items():  # where nobody listens
        monkeypatch.setenv(name, value)
    began_s = time.monotonic()
    with pytest.raises(ConfigError, match="the store did not answer"):
        FsspecStorage(Address("az", "results/run")).refuse_file()
    assert time.monotonic() - began_s < 60, "as long as for a store that went away"


def test_an_answer_with_another_hash_is_no_success(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = line.storage(direct=True)
    put = storage._files.pipe_file
    monkeypatch.setattr(storage._files, "pipe_file", lambda key, data, **kw: put(key, data[:-1], **kw))
    with pytest.raises(StorageError, match="what arrived is not what was sent"):
        storage.write("a.wav", b"content")


def test_a_server_that_knows_no_conditions_is_written_to_all_the_same(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.variables().items():
        monkeypatch.setenv(name, value)
    storage = FsspecStorage(s3.make(f"out-{uuid.uuid4().hex[:12]}") / "run")
    put = storage._files.pipe_file

    def without_conditions(key: str, data: bytes, **more: Any) -> object:
        if more.get("mode") == "create":
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise OSError("not implemented") from ClientError(answer, "PutObject")
        return put(key, data, **more)

    monkeypatch.setattr(storage._files, "pipe_file", without_conditions)
    storage.write_many([("a.wav", b"one")], replacing=False)
    storage.write_many([("a.wav", b"two")], replacing=False)
    assert storage.read("a.wav") == b"two"
    assert storage.read("versions/unrecorded/a.wav") == b"one"


def test_a_container_that_is_not_there_is_said_with_what_to_do(line: Line) -> None:
    storage = FsspecStorage(Address(line.root.protocol, f"none-{uuid.uuid4().hex[:8]}/run"))
    with pytest.raises(ConfigError, match=r"there is no container or bucket 'none-\w+'\. Create it"):
        storage.probe_writable()


def test_wrong_credentials_are_said_and_never_shown(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "audiobatch")
    canary = "c2VjcmV0LWNhbmFyeS1rZXk="
    connection = azurite.variables()["AZURE_STORAGE_CONNECTION_STRING"]
    before, _, rest = connection.partition("AccountKey=")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", f"{before}AccountKey={canary};{rest.partition(';')[2]}"
    )
    storage = FsspecStorage(Address("az", "out/run"))
    with pytest.raises(ConfigError, match="does not accept the credentials") as refused:
        storage.probe_writable()
    assert canary not in refused.value.message
    assert canary not in caplog.text


@pytest.mark.parametrize("protocol", ["az", "s3"])
def test_a_missing_extra_is_named(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = {"az": "adlfs", "s3": "s3fs"}[protocol]
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"az": "azure", "s3": "s3"}[protocol]
    with pytest.raises(ConfigError, match=rf"{protocol}:// needs the extra '{extra}'.*audiobatch\[{extra}\]"):
        FsspecStorage(Address(protocol, "out/run"))


def test_an_account_that_nobody_named_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        FsspecStorage(Address("az", "out/run"))


def test_a_connection_string_that_is_none_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKey=canary")
    with pytest.raises(
        ConfigError, match="AZURE_STORAGE_CONNECTION_STRING is not as it should be"
    ) as refused:
        FsspecStorage(Address("az", "out/run"))
    assert "canary" not in str(refused.value)
