"""Reviewers' marks in the ledger: of one version of a reply each, also in folders that an earlier version made."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from audiobatch.ledger.ledger import Ledger
from audiobatch.model import Outcome, Review, Source, SourceKind, Status
from tests.test_ledger import folder_v1

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SOURCE = Source(item_id="a", kind=SourceKind.PROMPT, position=0, root="", path="", text="Hi.", sha256="0")
REPLY = Outcome(
    item_id="a",
    turn=1,
    fingerprint="f",
    status=Status.SUCCEEDED,
    run_id="r",
    started_at=NOW,
    finished_at=NOW,
)
REDO = Review(review="redo", note="slower")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.writer.put_sources([SOURCE], "r")
    yield ledger
    ledger.close()


def reviews(ledger: Ledger) -> dict[int, Review]:
    (one,) = ledger.reader.recorded()
    return dict(one.reviews)


def test_a_mark_stands_until_its_reply_is_made_again_and_stays_with_the_old_one(ledger: Ledger) -> None:
    ledger.writer.record_outcome(REPLY).wait()
    ledger.writer.put_reviews({("a", 1): REDO})
    assert reviews(ledger) == {1: REDO}
    ledger.writer.record_outcome(replace(REPLY, version=2), superseded=REPLY).wait()
    assert reviews(ledger) == {}
    assert ledger.reader.past_marks() == {("a", 1, 1, REDO)}


def test_an_empty_mark_takes_the_mark_away(ledger: Ledger) -> None:
    ledger.writer.record_outcome(REPLY).wait()
    ledger.writer.put_reviews({("a", 1): REDO})
    ledger.writer.put_reviews({("a", 1): Review(review="ok")})
    assert reviews(ledger) == {1: Review(review="ok")}
    ledger.writer.put_reviews({("a", 1): Review(review="")})
    assert reviews(ledger) == {}


def test_a_mark_on_what_failed_stands_while_it_fails_and_not_on_the_reply_that_comes(ledger: Ledger) -> None:
    failed = replace(REPLY, status=Status.FAILED)
    ledger.writer.put_reviews({("a", 1): REDO})
    assert reviews(ledger) == {1: REDO}, "also before anything was sent"
    ledger.writer.record_outcome(failed).wait()
    assert reviews(ledger) == {1: REDO}
    ledger.writer.record_outcome(REPLY).wait()
    assert reviews(ledger) == {}


def test_a_purge_takes_the_notes_away(ledger: Ledger) -> None:
    ledger.writer.record_outcome(REPLY).wait()
    ledger.writer.put_reviews({("a", 1): REDO})
    ledger.writer.purge_texts(["a"])
    assert reviews(ledger) == {1: Review(review="redo")}


def test_a_ledger_of_the_first_version_opens_and_takes_marks(tmp_path: Path) -> None:
    folder = folder_v1(tmp_path)
    with closing(Ledger.open(folder / "ledger.db")) as ledger:
        ledger.writer.put_reviews({("p1", 1): REDO})
        marked = {
            outcome.source.item_id: dict(outcome.reviews)
            for outcome in ledger.reader.recorded()
            if outcome.reviews
        }
    assert marked == {"p1": {1: REDO}}
