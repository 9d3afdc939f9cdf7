"""The ledger: committed together or not at all, one bad row alone, older folders opened."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Connection, text

from audiobatch.errors import ConfigError, StorageError
from audiobatch.execution.recovery import recover
from audiobatch.ledger import schema
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.rows import Attempt, AttemptEnd
from audiobatch.model import Outcome, SavedFile, Source, SourceKind, Status
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.versions import set_aside, version_path
from tests.narrowing import present

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
FIXTURE = Path(__file__).parent / "fixtures" / "folder-v1"


def attempt(number: int = 1, item_id: str = "anna", **changes: Any) -> Attempt:
    given = {
        "attempt_id": f"run-{number}", "item_id": item_id, "turn": 1, "fingerprint": "f1", "run_id": "run",
        "number": number, "started_at": NOW, "deployment": "d", "provider": "azure", "transport": "chat",
        "model": "gpt-audio-1.5", "voice": "alloy", "format": "wav", "prompt": "Say hello.",
        "input_sha256": "00", "settings_key": "k",
    }  # fmt: skip
    return Attempt(**{**given, **changes})


def outcome(item_id: str = "anna", status: Status = Status.SUCCEEDED, **changes: Any) -> Outcome:
    given = {"turn": 1, "fingerprint": "f1", "run_id": "run", "started_at": NOW, "finished_at": NOW}
    return Outcome(item_id=item_id, status=status, **{**given, **changes})


def end(number: int = 1, state: Status = Status.SUCCEEDED) -> AttemptEnd:
    return AttemptEnd(attempt_id=f"run-{number}", state=state, finished_at=NOW)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger.open(tmp_path / "ledger.db")) as opened:
        yield opened


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


async def test_what_is_written_at_once_shares_transactions_and_is_on_disk_when_the_write_returns(
    ledger: Ledger, tmp_path: Path
) -> None:
    await asyncio.gather(*(ledger.writer.record_intent(attempt(n, f"item{n}")) for n in range(300)))
    assert rows(tmp_path / "ledger.db", "SELECT count(*) FROM attempts") == [(300,)]


async def test_one_bad_row_fails_alone(ledger: Ledger) -> None:
    bad = replace(outcome("bad"), finish_reason=cast("str", {"not": "text"}))
    ended = await asyncio.gather(
        *(ledger.writer.record_outcome(given) for given in (outcome("a"), bad, outcome("b"))),
        return_exceptions=True,
    )
    assert [type(result) for result in ended] == [type(None), StorageError, type(None)]
    assert {recorded.item_id for recorded in ledger.reader.all_outcomes()} == {"a", "b"}


async def test_an_outcome_the_end_of_its_call_and_what_it_replaces_are_one_commit(ledger: Ledger) -> None:
    await ledger.writer.record_intent(attempt())
    first = outcome(transcript="first")
    await ledger.writer.record_outcome(first, end())
    second = replace(first, version=2, fingerprint=cast("str", {"no": "text"}))
    with pytest.raises(StorageError):
        await ledger.writer.record_outcome(second, end(state=Status.FAILED), superseded=first)
    assert list(ledger.reader.all_outcomes(earlier=True)) == []
    assert ledger.reader.outcome("anna", 1) == first


async def test_a_disk_that_is_full_fails_everybody_who_waits_and_nobody_hangs(
    ledger: Ledger, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
        pages = other.execute("PRAGMA page_count").fetchone()[0]
    await asyncio.to_thread(_limit_pages, ledger, pages)
    long = "x" * 200_000
    ended = await asyncio.gather(
        *(ledger.writer.record_outcome(outcome(f"i{n}", transcript=long)) for n in range(20)),
        return_exceptions=True,
    )
    assert {type(result) for result in ended} == {StorageError}
    assert "full" in str(ended[0])


def _limit_pages(ledger: Ledger, pages: int) -> None:
    """The writer's own connection may not let its file grow."""
    original = ledger._database.writing.begin

    def begin() -> Any:
        context: Any = original()
        context.conn.connection.execute(f"PRAGMA max_page_count={pages}")
        return context

    ledger._database.writing.begin = begin  # type: ignore[method-assign]  # each connection gets the limit


# A killed run.


def test_calls_in_flight_at_a_kill_become_unknown_once(ledger: Ledger, tmp_path: Path) -> None:
    asyncio.run(_intents(ledger, attempt(1, "anna"), attempt(2, "ben")))
    storage = LocalStorage(tmp_path)
    assert recover(ledger, storage) == 2
    assert recover(ledger, storage) == 0
    found = ledger.reader.outcome("anna", 1)
    assert (present(found).status, present(found).perhaps_billed, present(found).prompt) == (
        Status.UNKNOWN,
        1,
        "Say hello.",
    )


async def _intents(ledger: Ledger, *attempts: Attempt) -> None:
    for attempt in attempts:
        await ledger.writer.record_intent(attempt)


def test_an_unknown_call_whose_outcome_the_kill_left_out_gets_it(ledger: Ledger, tmp_path: Path) -> None:
    async def calls() -> None:
        await ledger.writer.record_intent(attempt(1))
        await ledger.writer.record_end(end(1, Status.UNKNOWN))
        await ledger.writer.record_intent(attempt(2))
        await ledger.writer.record_end(end(2, Status.UNKNOWN))

    asyncio.run(calls())
    assert recover(ledger, LocalStorage(tmp_path)) == 0
    found = ledger.reader.outcome("anna", 1)
    assert (present(found).status, present(found).attempts, present(found).perhaps_billed) == (
        Status.UNKNOWN,
        2,
        2,
    )


@pytest.mark.parametrize("killed_at", ["while copying", "copied", "half written over", "written over"])
def test_a_killed_redo_leaves_the_recorded_result_with_its_own_files(
    ledger: Ledger, tmp_path: Path, killed_at: str
) -> None:
    storage = LocalStorage(tmp_path)
    audio, transcript = (
        storage.write("audio/anna.wav", b"old sound"),
        storage.write("transcripts/anna.txt", b"old"),
    )
    recorded = outcome(audio=audio, transcript_file=transcript)
    asyncio.run(_intents(ledger, attempt(1)))
    ledger.writer.record_outcome(recorded, end(1)).wait()
    asyncio.run(_intents(ledger, attempt(2, fingerprint="f2")))
    if killed_at == "while copying":
        storage.write(version_path(audio.path, 1), b"old sound")
    else:
        set_aside(storage, recorded)
    if killed_at in ("half written over", "written over"):
        storage.write("audio/anna.wav", b"new sound")
    if killed_at == "written over":
        storage.write("transcripts/anna.txt", b"new")
    recover(ledger, storage)
    assert ledger.reader.outcome("anna", 1) == recorded
    assert (storage.read("audio/anna.wav"), storage.read("transcripts/anna.txt")) == (b"old sound", b"old")
    assert not [path for path in (tmp_path / "versions").rglob("*") if path.is_file()]
    assert ledger.reader.open_calls() == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named_and_what_to_do_and_not_taken_for_a_broken_ledger(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        (disk / "filler").write_bytes(bytes(60_000))
        with pytest.raises(
            ConfigError, match=r"no space is left on its disk\. Free some, or name another"
        ) as full:
            Ledger.open(disk / "ledger.db")
        assert str(disk) in full.value.message
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# Folders of earlier versions.


def folder_v1(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    shutil.copytree(FIXTURE, folder)
    with closing(sqlite3.connect(folder / "ledger.db")) as connection:
        connection.executescript((folder / "ledger.sql").read_text())
    (folder / "ledger.sql").unlink()
    return folder


def schema_of(path: Path) -> tuple[list[tuple[Any, ...]], dict[str, set[tuple[Any, ...]]]]:
    """Tables, columns and indexes, whatever the order they were made in."""
    names = rows(path, "SELECT type, name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    columns = {
        table: {row[1:] for row in rows(path, f"PRAGMA table_info({table})")}
        for kind, table, _ in names
        if kind == "table"
    }
    return sorted(names), columns


def test_a_folder_of_version_1_opens_with_all_that_was_in_it(tmp_path: Path) -> None:
    folder = folder_v1(tmp_path)
    with closing(Ledger.open(folder / "ledger.db")) as opened:
        found = {outcome.item_id: outcome for outcome in opened.reader.all_outcomes()}
        assert {item_id: recorded.status for item_id, recorded in found.items()} == {
            "p1": Status.SUCCEEDED, "p2": Status.SUCCEEDED, "p3": Status.SUCCEEDED, "filtered": Status.FAILED
        }  # fmt: skip
        assert (
            found["p1"].version,
            [outcome.version for outcome in opened.reader.all_outcomes(earlier=True)],
        ) == (
            2,
            [1],
        )
        assert isinstance(found["p1"].audio, SavedFile)
        assert len(list(opened.reader.recorded())) == 4
        assert opened.reader.spent_usd() > 0


def test_a_migrated_ledger_is_like_a_new_one(tmp_path: Path) -> None:
    folder = folder_v1(tmp_path)
    Ledger.open(folder / "ledger.db").close()
    Ledger.open(tmp_path / "new.db").close()
    assert schema_of(folder / "ledger.db") == schema_of(tmp_path / "new.db")
    version = rows(folder / "ledger.db", "SELECT value FROM meta WHERE key = 'schema_version'")
    assert version == [(str(schema.VERSION),)]


def test_migrations_run_in_order_once_each_and_only_those_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_v1(tmp_path)
    Ledger.open(folder / "ledger.db").close()
    done = []

    def third(connection: Connection) -> None:
        done.append(3)
        connection.execute(text("ALTER TABLE runs ADD COLUMN host TEXT"))

    def fourth(connection: Connection) -> None:
        done.append(4)
        connection.execute(text("UPDATE runs SET host = 'somewhere'"))

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, third, fourth))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 2)
    monkeypatch.setattr("audiobatch.ledger.engine.VERSION", schema.VERSION)
    for _ in range(2):
        Ledger.open(folder / "ledger.db").close()
    assert done == [3, 4]
    assert rows(folder / "ledger.db", "SELECT DISTINCT host FROM runs") == [("somewhere",)]


def test_a_migration_that_fails_half_way_has_not_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_v1(tmp_path)

    def breaks(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE runs ADD COLUMN host TEXT"))
        raise ZeroDivisionError

    before = schema_of(folder / "ledger.db")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, breaks))
        with pytest.raises(ZeroDivisionError):
            Ledger.open(folder / "ledger.db")
    assert schema_of(folder / "ledger.db") == before
    Ledger.open(folder / "ledger.db").close()


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_migration_that_is_killed_half_way_has_not_happened(tmp_path: Path) -> None:
    folder = folder_v1(tmp_path)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from sqlalchemy import text\n"
        "from audiobatch.ledger import schema\n"
        "from audiobatch.ledger.ledger import Ledger\n"
        "def dies(connection):\n"
        "    connection.execute(text('ALTER TABLE runs ADD COLUMN host TEXT'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "schema.MIGRATIONS = (*schema.MIGRATIONS, dies)\n"
        "Ledger.open(Path(sys.argv[1]))\n"
    )
    before = schema_of(folder / "ledger.db")
    ended = subprocess.run(
        [sys.executable, "-c", program, str(folder / "ledger.db")], cwd=Path(__file__).parents[1]
    )
    assert ended.returncode == -signal.SIGKILL
    assert schema_of(folder / "ledger.db") == before
    Ledger.open(folder / "ledger.db").close()


def test_a_ledger_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "ledger.db").close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("UPDATE meta SET value = '999'")
        connection.commit()
    with pytest.raises(ConfigError, match="version 999, made by a later audiobatch"):
        Ledger.open(tmp_path / "ledger.db")


@pytest.mark.parametrize("content", [b"this is no database, though it has that name" * 50, None])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ledger.db"
    if content is None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE recipes (name TEXT)")
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not a ledger|not ours"):
        Ledger.open(path)


def test_a_reader_sees_one_state_while_a_run_writes(ledger: Ledger, tmp_path: Path) -> None:
    sources = [
        Source(item_id=f"i{n:04}", kind=SourceKind.PROMPT, position=n, root="", path="") for n in range(2500)
    ]
    ledger.writer.put_sources(sources, "run")
    with closing(Ledger.open(tmp_path / "ledger.db")) as other:
        reading = other.reader.recorded()
        first = next(reading)
        ledger.writer.put_sources([replace(source, path="moved") for source in sources], "run")
        assert {one.source.path for one in (first, *reading)} == {""}
