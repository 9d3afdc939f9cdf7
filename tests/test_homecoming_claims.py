"""Replies from the spool come home beside runs that claim: never over what another run holds at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.rows import Attempt
from audiobatch.ledger.spool_replay import replay, spool_reply
from audiobatch.model import Outcome, Source, SourceKind, Status
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.spool import Spool
from tests.narrowing import present
from tests.postgresql_server import PostgresqlServer

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def output(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "out")


@pytest.fixture
def ledgers(postgresql: PostgresqlServer, output: LocalStorage) -> Iterator[tuple[Ledger, Ledger]]:
    """Of a run that was stopped, and of another: on one queue, with one item."""
    with (
        closing(Ledger.at(postgresql.url, str(output.root))) as stopped,
        closing(Ledger.at(postgresql.url, str(output.root))) as other,
    ):
        stopped.queue.claims_as("stopped", lease_s=30.0)
        other.queue.claims_as("other", lease_s=30.0)
        other.writer.put_sources(
            [Source(item_id="a", kind=SourceKind.PROMPT, position=1, root="", path="", text="Say a.")], "q"
        )
        other.queue.fill([("a", 1)], "q")
        yield stopped, other


@pytest.fixture
def spool(tmp_path: Path, ledgers: tuple[Ledger, Ledger]) -> Spool:
    spool = Spool(tmp_path / "out", base=tmp_path / "spool")
    ledgers[0].writer.record_intent(attempt()).wait()
    outcome = Outcome(
        item_id="a",
        turn=1,
        fingerprint="f",
        status=Status.SUCCEEDED,
        run_id="stopped",
        started_at=NOW,
        finished_at=NOW,
        transcript="late",
    )
    files = [("audio/a.wav", b"late")]
    spool_reply(spool, outcome, None, files, {"audio": "audio/a.wav"}, late=True)
    return spool


def attempt() -> Attempt:
    return Attempt(
        attempt_id="t1",
        item_id="a",
        turn=1,
        fingerprint="f",
        run_id="stopped",
        number=1,
        started_at=NOW,
        deployment="d",
        provider="openai",
        transport="chat",
        model="m",
        voice="",
        format="wav",
        prompt="Say a.",
        input_sha256="",
        settings_key="k",
    )


def claimed(ledger: Ledger) -> list[str]:
    return [claim.item_id for claim in asyncio.run(ledger.queue.claim(5))]


def test_what_another_run_holds_stays_in_the_spool(
    ledgers: tuple[Ledger, Ledger], spool: Spool, output: LocalStorage
) -> None:
    stopped, other = ledgers
    assert claimed(other) == ["a"]
    assert replay(spool, output, stopped) == 0
    assert stopped.reader.outcome("a", 1) is None
    assert len(list(spool.folder.glob("*.reply"))) == 1
    assert not output.exists("audio/a.wav")


def test_what_comes_home_is_claimed_by_nobody_meanwhile_and_is_done_for_whoever_claims_it_next(
    ledgers: tuple[Ledger, Ledger], spool: Spool, output: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = ledgers
    write_many, meanwhile = LocalStorage.write_many, []

    def claiming(storage: LocalStorage, files: Any) -> Any:
        meanwhile.append(claimed(other))
        return write_many(storage, files)

    monkeypatch.setattr(LocalStorage, "write_many", claiming)
    assert replay(spool, output, stopped) == 1
    assert meanwhile == [[]]
    assert claimed(other) == ["a"], "it is on the queue as it was"
    assert present(other.reader.outcome("a", 1)).transcript == "late"


def test_a_claim_that_comes_between_leaves_the_reply_in_the_spool(
    ledgers: tuple[Ledger, Ledger], spool: Spool, output: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = ledgers
    write_many = LocalStorage.write_many

    def planned_anew(storage: LocalStorage, files: Any) -> Any:
        saved = write_many(storage, files)
        other.queue.fill([("a", 1)], "another queue")
        assert claimed(other) == ["a"]
        return saved

    monkeypatch.setattr(LocalStorage, "write_many", planned_anew)
    assert replay(spool, output, stopped) == 0
    assert other.reader.outcome("a", 1) is None
    assert len(list(spool.folder.glob("*.reply"))) == 1
    assert other.queue.held == {"a"}
    other.writer.record_outcome(outcome_of_other()).wait()


def outcome_of_other() -> Outcome:
    return Outcome(
        item_id="a",
        turn=1,
        fingerprint="f",
        status=Status.SUCCEEDED,
        run_id="other",
        started_at=NOW,
        finished_at=NOW,
    )
