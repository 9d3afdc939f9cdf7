"""The ledger in PostgreSQL: what is its own, and what is said when it cannot be had."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from audiobatch.errors import ConfigError, FolderInUse
from audiobatch.ledger import schema
from audiobatch.ledger.engine import open_postgresql, schema_of
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.membership import this_process
from audiobatch_emulator.process import EmulatorProcess
from tests.postgresql_server import PostgresqlServer
from tests.running import azure, run_job


def schemas(server: PostgresqlServer) -> set[str]:
    with server.connect() as connection:
        return {row[0] for row in connection.execute("SELECT schema_name FROM information_schema.schemata")}


def test_jobs_share_a_database_each_in_a_schema_of_its_own(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    ledgers = [Ledger.at(postgresql.url, str(tmp_path / name)) for name in ("a", "b", "a")]
    ledgers[0].writer.put_note("who", "a")
    assert [ledger.reader.note("who") for ledger in ledgers] == ["a", "", "a"]
    assert {schema_of(str(tmp_path / name)) for name in ("a", "b")} <= schemas(postgresql)
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("before", [1, 2, 3, 4, 5, 6])
def test_a_schema_of_an_earlier_version_is_migrated_with_all_that_is_in_it(
    postgresql: PostgresqlServer, tmp_path: Path, before: int
) -> None:
    with closing(Ledger.at(postgresql.url, str(tmp_path))) as ledger:
        ledger.writer.begin_run("run", spec="{}", settings_key="k", settings_value="{}")
    back = {
        7: tuple(f"ALTER TABLE {name} DROP COLUMN cost_basis" for name in ("outcomes", "versions", "parts")),
        6: ("ALTER TABLE attempts DROP COLUMN worst_usd",),
        5: ("DROP TABLE queue", "DROP TABLE workers", "ALTER TABLE items ADD COLUMN todo_run TEXT",
            "CREATE INDEX items_to_do ON items (todo_run, position)"),
        4: ("DROP TABLE parts", "ALTER TABLE attempts DROP COLUMN part"),
        3: ("DROP TABLE marks",),
        2: ("DROP INDEX attempts_by_run", "DROP INDEX outcomes_by_run"),
    }  # fmt: skip
    engine = open_postgresql(postgresql.url, str(tmp_path))
    with engine.begin() as connection:
        for version in range(schema.VERSION, before, -1):
            for statement in back[version]:
                connection.execute(text(statement))
        connection.execute(text(f"UPDATE meta SET value = '{before}' WHERE key = 'schema_version'"))
    engine.dispose()
    with closing(Ledger.at(postgresql.url, str(tmp_path))) as ledger:
        assert ledger.reader.settings_value("k") == {}
        ledger.queue.fill([("a", 1)], "q")
        assert ledger.queue.positions() == [1]
        assert ledger.reader.note("schema_version") == str(schema.VERSION)


def test_a_schema_of_a_later_version_is_left_alone(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    with closing(Ledger.at(postgresql.url, str(tmp_path))) as ledger:
        ledger.writer.put_note("schema_version", "999")
    with pytest.raises(ConfigError, match="made by a later audiobatch"):
        Ledger.at(postgresql.url, str(tmp_path))


def test_a_server_that_is_not_there_a_database_that_is_not_there_a_user_who_is_not_known(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    nobody = postgresql.url.replace(f":{postgresql.port}/", ":1/")
    for url, why in (
        (nobody, "refused"),
        (postgresql.url.replace("/audio", "/video"), 'database "video" does not exist'),
        (postgresql.url.replace(f"//{postgresql.user}@", "//somebody@"), 'role "somebody" does not exist'),
    ):
        with pytest.raises(ConfigError, match=why) as refused:
            Ledger.at(url, str(tmp_path))
        assert url in refused.value.message


def test_a_missing_driver_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"audiobatch\[postgres\]"):
        Ledger.at("postgresql+psycopg://me@127.0.0.1:1/audio", str(tmp_path))


def test_whoever_opens_a_ledger_for_ever_is_told_of(
    postgresql: PostgresqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiobatch.ledger.engine._LOCK_S", 1)
    with (
        closing(Ledger.at(postgresql.url, str(tmp_path))) as first,
        closing(Ledger.at(postgresql.url, str(tmp_path))) as second,
        first.exclusive(),
        pytest.raises(FolderInUse, match="is it stopped"),
        second.exclusive(),
    ):
        pass


def test_who_wants_a_shared_ledger_alone_waits_for_no_run_and_none_for_it(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    with closing(Ledger.at(postgresql.url, str(tmp_path))) as ledger:
        with (
            ledger.reserved("purge"),
            closing(Ledger.at(postgresql.url, str(tmp_path))) as other,
            pytest.raises(FolderInUse, match="purge-"),
        ):
            other.workers.join(this_process("run", asks="x", lease_s=60))
        joined = ledger.workers.join(this_process("run", asks="x", lease_s=60))
        assert (joined.alone, joined.queue_id) == (True, "run")
        ledger.workers.leave()


def test_the_same_job_a_second_time_sends_nothing_and_another_output_does_not_know_of_it(
    emulator: EmulatorProcess, postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for n in range(3):
        (tmp_path / "in" / f"{n}.txt").write_text(f"Say {n}.")
    job = {
        **azure(emulator),
        "inputs": (str(tmp_path / "in"),),
        "output": str(tmp_path / "out"),
        "ledger": postgresql.url,
    }
    first, second = run_job(**job), run_job(**job)
    assert (first.exit_code, first.succeeded, first.pending) == (0, 3, 0)
    assert (second.exit_code, second.sent, second.skipped_done) == (0, 0, 3)
    assert not (tmp_path / "out" / "ledger.db").exists()
    assert run_job(**{**job, "output": str(tmp_path / "other")}).sent == 3
    with pytest.raises(ConfigError, match=r"results are there already|another output"):
        run_job(**{**job, "ledger": str(tmp_path / "new.db")})
    assert len(emulator.settled_journal(6)) == 6


def test_a_limit_of_cost_for_all_runs_is_handed_out_and_never_passed(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    import asyncio
    from decimal import Decimal

    async def hand_out() -> Decimal:
        cap, worst = Decimal(10), Decimal("0.5")
        ledgers = [Ledger.at(postgresql.url, str(tmp_path)) for _ in range(3)]
        for number, one in enumerate(ledgers):
            one.workers.join(this_process(f"run{number}", asks="x", lease_s=60))
        used = [Decimal(0)] * 3
        allowed = [Decimal(0)] * 3
        for turn in range(40):
            which = turn * 7 % 3
            allowed[which] = await ledgers[which].workers.allowance(cap, used[which], worst)
            assert sum(allowed) <= cap
            used[which] = allowed[which] if turn % 2 else used[which]
        for ledger in ledgers:
            ledger.workers.leave()
            ledger.close()
        return sum(used, Decimal(0))

    spent = asyncio.run(hand_out())
    assert Decimal("9.9") < spent <= 10
