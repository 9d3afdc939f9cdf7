"""What every ledger must do, in a file or in a PostgreSQL database: one suite, run on both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from audiobatch.errors import ErrorType, LeaseLost, StorageError
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.queue import Claim
from audiobatch.ledger.rows import Attempt, AttemptEnd
from audiobatch.model import Outcome, Review, Source, SourceKind, Status
from tests.narrowing import present

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
#: Shorter than anybody should take to claim and look; a lease that is to run out is waited for.
SHORT_S = 0.2


def attempt(number: int = 1, item_id: str = "i001", **changes: Any) -> Attempt:
    given = {
        "attempt_id": f"run-{number}", "item_id": item_id, "turn": 1, "fingerprint": "f1", "run_id": "run",
        "number": number, "started_at": NOW, "deployment": "d", "provider": "azure", "transport": "chat",
        "model": "gpt-audio-1.5", "voice": "alloy", "format": "wav", "prompt": "Say hello.",
        "input_sha256": "00", "settings_key": "k",
    }  # fmt: skip
    return Attempt(**{**given, **changes})


def outcome(item_id: str = "i001", status: Status = Status.SUCCEEDED, **changes: Any) -> Outcome:
    given = {"turn": 1, "fingerprint": "f1", "run_id": "run", "started_at": NOW, "finished_at": NOW}
    return Outcome(item_id=item_id, status=status, **{**given, **changes})


def end(number: int = 1, state: Status = Status.SUCCEEDED, **changes: Any) -> AttemptEnd:
    return AttemptEnd(attempt_id=f"run-{number}", state=state, finished_at=NOW, **changes)


def sources(count: int) -> list[Source]:
    return [
        Source(item_id=f"i{n:03}", kind=SourceKind.PROMPT, position=n, root="", path="", text=f"text {n}")
        for n in range(1, count + 1)
    ]


@pytest.fixture(params=["file", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `--ledger` would say."""
    return (
        str(tmp_path / "ledger.db") if request.param == "file" else request.getfixturevalue("postgresql").url
    )


@pytest.fixture
def open_ledger(place: str, tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Opens the same ledger once more, as another run does."""
    opened = []

    def open_one(run_id: str = "run", *, lease_s: float = 60.0) -> Ledger:
        ledger = Ledger.at(place, str(tmp_path))
        ledger.queue.claims_as(run_id, lease_s=lease_s)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[..., Ledger]) -> Ledger:
    return open_ledger()


def filled(ledger: Ledger, count: int = 10, queue_id: str = "q") -> Ledger:
    ledger.writer.put_sources(sources(count), queue_id)
    ledger.queue.fill([(source.item_id, source.position) for source in sources(count)], queue_id)
    return ledger


def ids(claims: Iterable[Claim]) -> list[str]:
    return [claim.item_id for claim in claims]


async def until(condition: Callable[[], Awaitable[list[Claim]]], patience_s: float = 30.0) -> list[Claim]:
    async with asyncio.timeout(patience_s):
        while not (found := await condition()):  # noqa: ASYNC110 - it is another process's clock
            await asyncio.sleep(0.02)
    return found


# What is written.


async def test_what_is_written_at_once_is_all_there_when_the_writes_return(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    await asyncio.gather(*(ledger.writer.record_intent(attempt(n, f"item{n}")) for n in range(300)))
    assert len(open_ledger().reader.open_calls()) == 300


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
    await ledger.writer.record_outcome(first, end(cost_usd=Decimal("0.1")))
    second = replace(first, version=2, fingerprint=cast("str", {"no": "text"}))
    with pytest.raises(StorageError):
        await ledger.writer.record_outcome(second, end(state=Status.FAILED), superseded=first)
    assert list(ledger.reader.all_outcomes(earlier=True)) == []
    assert ledger.reader.outcome("i001", 1) == first
    second = replace(second, fingerprint="f2")
    await ledger.writer.record_outcome(second, end(), superseded=first)
    assert (ledger.reader.outcome("i001", 1), ledger.reader.earlier_outcomes("i001", 1)) == (second, [first])


async def test_a_call_counts_what_it_cost_or_its_worst_or_else_what_it_is_taken_for(ledger: Ledger) -> None:
    worst, cost, free = (
        {"worst_usd": Decimal("0.10")},
        {"cost_usd": Decimal("0.01")},
        {"cost_usd": Decimal(0)},
    )
    calls: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
        "known": (worst, {**cost}),
        "no token counts": (worst, {}),
        "lost": (worst, {"state": Status.UNKNOWN}),
        "in flight": (worst, None),
        "refused": (worst, {"state": Status.FAILED, "error_type": ErrorType.UNAVAILABLE, **free}),
        "bad": (worst, {"state": Status.FAILED, "error_type": ErrorType.BAD_REPLY}),
        "of an earlier version, lost": ({}, {"state": Status.UNKNOWN}),
        "of an earlier version, bad": ({}, {"state": Status.FAILED, "error_type": ErrorType.BAD_REPLY}),
        "of an earlier version, refused": (
            {},
            {"state": Status.FAILED, "error_type": ErrorType.RATE_LIMITED},
        ),
        "of an earlier version, known": ({}, {**cost}),
    }
    for number, (given, ended) in enumerate(calls.values(), 1):
        await ledger.writer.record_intent(attempt(number, **given))
        if ended is not None:
            await ledger.writer.record_end(end(number, **ended))
    assert ledger.reader.spent_usd() == Decimal("0.02")
    assert ledger.reader.spent_at_most_usd(Decimal(7)) == Decimal("0.02") + 4 * Decimal("0.10") + 2 * 7
    assert ledger.reader.uncounted() == (6, None)


async def test_what_comes_back_is_what_was_put_in_whatever_its_characters(ledger: Ledger) -> None:
    words = "naïve \N{PILE OF POO} \u2028 line\r\nline ' \" \\ %s :x"
    await ledger.writer.record_outcome(
        outcome(transcript=words, cost_usd=Decimal("0.000001"), latency_s=0.1 + 0.2)
    )
    found = ledger.reader.outcome("i001", 1)
    assert (present(found).transcript, present(found).cost_usd, present(found).latency_s) == (
        words,
        Decimal("0.000001"),
        0.1 + 0.2,
    )
    assert (present(found).started_at, present(found).status) == (NOW, Status.SUCCEEDED)


async def test_a_character_that_a_database_cannot_hold_costs_no_reply(ledger: Ledger) -> None:
    await ledger.writer.record_outcome(outcome(transcript="a\0b"))
    assert present(ledger.reader.outcome("i001", 1)).transcript in {"a\0b", "a\ufffdb"}


def test_sources_are_streamed_in_input_order_and_put_again_keep_their_place(ledger: Ledger) -> None:
    ledger.writer.put_sources(sources(2500), "q1")
    ledger.writer.put_sources([replace(source, text="new") for source in sources(2500)], "q2")
    found = list(ledger.reader.recorded("q2"))
    assert [item.source.position for item in found] == list(range(1, 2501))
    assert {item.source.text for item in found} == {"new"}
    assert list(ledger.reader.recorded("q1")) == []


async def test_marks_notes_settings_and_a_purge(ledger: Ledger) -> None:
    ledger.writer.begin_run("run", spec="{}", settings_key="k", settings_value='{"voice":"alloy"}')
    ledger.writer.begin_run("run2", spec="{}", settings_key="k", settings_value='{"voice":"ash"}')
    assert ledger.reader.settings_value("k") == {"voice": "alloy"}
    ledger.writer.put_sources(sources(1), "q")
    await ledger.writer.record_outcome(outcome(transcript="secret"))
    ledger.writer.put_reviews({("i001", 1): Review(review="redo", note="louder")})
    assert next(iter(ledger.reader.recorded())).reviews[1] == Review(review="redo", note="louder")
    ledger.writer.put_note("a", "b")
    assert (ledger.reader.note("a"), ledger.reader.note("c")) == ("b", "")
    ledger.writer.purge_texts(["i001"])
    ledger.writer.shrink()
    assert present(ledger.reader.outcome("i001", 1)).transcript == ""
    ledger.writer.end_run("run", "{}")


def test_inputs_that_are_gone_and_never_had_a_result_are_forgotten(ledger: Ledger) -> None:
    ledger.writer.put_sources(sources(2), "q1")
    ledger.writer.put_sources(sources(1), "q2")
    ledger.writer.forget_missing_inputs("q2")
    assert [outcome.source.item_id for outcome in ledger.reader.recorded()] == ["i001"]


# The queue.


async def test_what_was_let_go_is_not_counted_as_left_any_more(ledger: Ledger) -> None:
    filled(ledger, 100)
    for left, claim in zip(reversed(range(100)), await ledger.queue.claim(100), strict=True):
        ledger.queue.finish(claim.item_id)
        assert ledger.queue.state().left == left


async def test_items_are_claimed_in_order_of_position_each_by_one_run_alone(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 10)
    other = open_ledger("other")
    assert ids(await ledger.queue.claim(4, after=0)) == ["i001", "i002", "i003", "i004"]
    assert ids(await other.queue.claim(4, after=0)) == ["i005", "i006", "i007", "i008"]
    assert ids(await ledger.queue.claim(4, after=4)) == ["i009", "i010"]
    assert await other.queue.claim(4) == []
    assert other.queue.state().held == 10


async def test_many_who_claim_at_once_get_every_item_once(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 200)
    runs = [ledger, *(open_ledger(f"other{n}") for n in range(3))]

    async def drain(run: Ledger) -> list[str]:
        mine = []
        while claims := await run.queue.claim(7):
            mine += ids(claims)
            for claim in claims:
                run.queue.finish(claim.item_id)
        return mine

    found = await asyncio.gather(*(drain(run) for run in runs))
    assert sorted(name for mine in found for name in mine) == [source.item_id for source in sources(200)]
    for run in runs:
        await run.queue.renew()  # what was written before it is there
    assert ledger.queue.state().left == 0


async def test_what_has_ended_is_not_put_on_the_same_queue_again(ledger: Ledger) -> None:
    filled(ledger, 3)
    claims = await ledger.queue.claim(2, after=0)
    ledger.queue.finish(claims[0].item_id)
    filled(ledger, 4)  # as another run that plans the same
    assert ledger.queue.positions() == [2, 3, 4]
    assert ids(await ledger.queue.claim(9, after=0)) == ["i003", "i004"]


async def test_what_is_set_free_can_be_claimed_at_once(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 3)
    await ledger.queue.claim(3, after=0)
    ledger.queue.release(["i002"])
    other = open_ledger("other")
    [found] = await until(lambda: other.queue.claim(9))
    assert (found.item_id, found.overdue) == ("i002", False)


async def test_a_lease_that_runs_out_is_taken_over_and_one_that_is_renewed_is_not(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 2)
    silent, alive = open_ledger("silent", lease_s=SHORT_S), open_ledger("alive", lease_s=SHORT_S)
    await silent.queue.claim(1, after=0)
    [kept] = await alive.queue.claim(1, after=0)

    async def take_over() -> list[Claim]:
        assert not await alive.queue.renew()
        return await ledger.queue.claim(9)

    found = await until(take_over)
    assert [(item.item_id, item.overdue, item.fence) for item in found] == [("i001", True, 2)]
    assert await silent.queue.renew() == {"i001"}
    assert (kept.item_id, kept.fence, kept.overdue) == ("i002", 1, False)


async def test_leases_far_apart_in_time_are_told_apart_by_the_databases_clock_alone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(ledger, 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    await ledger.queue.claim(1)
    assert await ledger.queue.claim(1) == []


async def test_whoever_was_silent_too_long_writes_nothing_more_of_the_item(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 1)
    silent = open_ledger("silent", lease_s=SHORT_S)
    [mine] = await silent.queue.claim(1, after=0)
    await silent.writer.record_intent(attempt(1))
    await until(lambda: ledger.queue.claim(1))
    with pytest.raises(LeaseLost):
        await silent.writer.record_intent(attempt(2))
    with pytest.raises(LeaseLost):
        await silent.writer.record_outcome(outcome(transcript="late"), end(1))
    with pytest.raises(LeaseLost):
        await asyncio.to_thread(silent.queue.check_lease, mine.item_id)
    assert ledger.reader.outcome("i001", 1) is None
    assert [call["attempt_id"] for call in ledger.reader.open_calls(["i001"])] == ["run-1"]
    await ledger.writer.record_outcome(outcome(transcript="mine"))
    silent.queue.finish("i001")
    await silent.queue.renew()
    assert present(ledger.reader.outcome("i001", 1)).transcript == "mine"
    assert ledger.queue.held == {"i001"}
    assert ledger.queue.state().held == 1, "what the silent one let go is not its own any more"


async def test_the_end_that_another_has_given_a_call_stands(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    silent = open_ledger("silent")
    await silent.writer.record_intent(attempt(1))
    ledger.writer.settle_end(end(1, Status.UNKNOWN))
    await silent.writer.record_end(end(1, Status.FAILED))
    assert ledger.reader.unknown_calls("i001", 1) == 1


async def test_of_a_batch_only_what_is_late_is_refused(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 10)
    silent = open_ledger("silent", lease_s=SHORT_S)
    await silent.queue.claim(10, after=0)
    taken = set(ids(await until(lambda: ledger.queue.claim(4))))
    names = [source.item_id for source in sources(10)]
    ended = await asyncio.gather(
        *(silent.writer.record_outcome(outcome(name)) for name in names), return_exceptions=True
    )
    assert {name for name, result in zip(names, ended, strict=True) if isinstance(result, LeaseLost)} == taken
    assert {recorded.item_id for recorded in ledger.reader.all_outcomes()} == set(names) - taken


async def test_a_queue_that_is_emptied_refuses_whoever_still_held_something(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    filled(ledger, 2)
    before = open_ledger("before")
    await before.queue.claim(1, after=0)
    ledger.queue.clear()
    assert ledger.queue.state().left == 0
    with pytest.raises(LeaseLost):
        await before.writer.record_intent(attempt())
    filled(ledger, 2, "q2")
    assert ids(await ledger.queue.claim(9, after=0)) == ["i001", "i002"]


async def test_how_far_the_work_is(ledger: Ledger) -> None:
    ledger.writer.put_note("queue", "q")
    filled(ledger, 4)
    claims = await ledger.queue.claim(2, after=0)
    await ledger.writer.record_intent(attempt(1, claims[1].item_id))
    ledger.queue.finish(claims[0].item_id)
    await ledger.writer.record_outcome(outcome(finished_at=datetime.now(UTC)))
    seen = ledger.reader.progress(NOW)
    assert (seen.queued, seen.ended, seen.ended_since, seen.in_flight) == (4, 1, 1, 1)
    ledger.writer.begin_run("q", spec="{}", settings_key="k", settings_value="{}")
    assert not ledger.reader.has_finished_run()
    now = datetime.now(UTC)
    late = ledger.reader.progress(now - timedelta(minutes=1))
    assert now - late.since < timedelta(seconds=30), "no longer than the run"
    assert late.ended_since <= 1
    assert replace(late, ended_since=3, since=now - timedelta(seconds=20)).per_minute(now) == 9
    ledger.writer.end_run("q", "{}")
    assert ledger.reader.has_finished_run()


def test_it_is_opened_again_with_all_that_was_in_it(place: str, tmp_path: Path) -> None:
    with closing(Ledger.at(place, str(tmp_path))) as first:
        filled(first, 3)
    with closing(Ledger.at(place, str(tmp_path))) as again:
        assert again.queue.positions() == [1, 2, 3]
        assert len(list(again.reader.recorded_to_do())) == 3
