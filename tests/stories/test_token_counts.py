"""Token counts that are none: a cost limit counts the worst case, and the cost shown is called an estimate."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.prices import price_of
from audiobatch.execution.job import Job
from audiobatch.ledger.ledger import Ledger
from audiobatch.transports.reply_content import CHAT_NAMES, usage_of
from tests.bare_server import bare_server, completion
from tests.narrowing import local, present
from tests.running import read_manifest, rows_of, run_job

GOOD = {
    "prompt_tokens": 20,
    "completion_tokens": 40,
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
    "completion_tokens_details": {"audio_tokens": 30},
}
NO_COUNTS: dict[str, Any] = {
    "missing": None,
    "empty": {},
    "a list": [],
    "a word": "many",
    "total alone": {"total_tokens": 60},
    "another api's names": {"input_tokens": 500, "output_tokens": 500, "total_tokens": 1000},
    "zeros": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "no reply": {**GOOD, "completion_tokens": 0, "completion_tokens_details": {}},
    "no prompt": {**GOOD, "prompt_tokens": 0},
    "half of them": {"prompt_tokens": 20},
    "booleans": {**GOOD, "prompt_tokens": True, "completion_tokens": True},
    "words": {**GOOD, "prompt_tokens": "twenty"},
    "signs": {**GOOD, "prompt_tokens": "+20"},
    "negative": {**GOOD, "completion_tokens": -40},
    "fractions": {**GOOD, "completion_tokens": 40.5},
    "endless": {**GOOD, "completion_tokens": 1e300},
    "null": {**GOOD, "completion_tokens": None},
    "more sound than all": {**GOOD, "completion_tokens_details": {"audio_tokens": 41}},
    "sound that is text": {**GOOD, "completion_tokens_details": {"audio_tokens": 0}},
    "no details": {"prompt_tokens": 20, "completion_tokens": 40},
    "details of another kind": {**GOOD, "completion_tokens_details": "none"},
    "details that are words": {**GOOD, "completion_tokens_details": {"audio_tokens": "some"}},
}


@pytest.mark.parametrize("usage", NO_COUNTS.values(), ids=NO_COUNTS)
def test_only_numbers_in_the_known_fields_are_counts(usage: dict[str, Any] | list[Any] | str | None) -> None:
    assert usage_of(usage, CHAT_NAMES, received_audio=True) is None


def test_counts_are_counts_also_as_floats_without_a_fraction() -> None:
    found = usage_of({**GOOD, "prompt_tokens": 20.0}, CHAT_NAMES, received_audio=True)
    assert found is not None
    assert (found.input_text_tokens, found.output_text_tokens, found.output_audio_tokens) == (20, 10, 30)
    assert usage_of({"prompt_tokens": 3, "completion_tokens": 4}, CHAT_NAMES) is not None, "text alone"
    assert usage_of({"prompt_tokens": 3, "completion_tokens": 4}, CHAT_NAMES, sent_audio=True) is None


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.txt").write_text("Say hello.")
    return {"inputs": [str(folder)], "output": str(tmp_path / "out"), "provider": "openai"}


def reply_with(usage: dict[str, Any] | None) -> Callable[..., dict[str, Any]]:
    def reply(*_: object) -> dict[str, Any]:
        return {**completion("Hello there.", sound_s=2.0), "usage": usage}

    return reply


@pytest.mark.parametrize(
    "name", ["missing", "total alone", "zeros", "another api's names", "booleans", "no details"]
)
def test_no_cap_is_passed_and_the_cost_shown_is_an_estimate(name: str, prompts: dict[str, Any]) -> None:
    price = price_of("gpt-audio-1.5", "openai")
    cap, longest = Decimal("0.10"), 300
    worst = max(present(price).audio_out, present(price).text_out) * longest / 10**6
    with bare_server(reply_with(NO_COUNTS[name])) as server:
        settings = {**prompts, "endpoint": server.url, "max_completion_tokens": longest}
        summary = run_job(**settings, max_cost=str(cap))
        calls = len(server.bodies)
        assert (summary.exit_code, summary.stopped_by) == (6, "max_cost")
        assert 0 < calls <= math.floor(cap / worst)
        again = run_job(**settings, max_total_cost=str(cap))
        assert (again.exit_code, len(server.bodies)) == (6, calls), "the folder's account knows it too"
    rows = [row for row in rows_of(summary) if row["status"] == "succeeded"]
    assert len(rows) == calls
    spoken = present(price).audio_out * 2 * 20 / 10**6
    for row in rows:
        assert row["cost_basis"] == "estimate"
        assert float(spoken) <= float(row["cost_usd"]) <= float(spoken) * 1.2
        assert row["output_audio_tokens"] == ""
    assert summary.cost_usd == pytest.approx(
        sum(Decimal(row["cost_usd"]) for row in rows), rel=Decimal("0.001")
    )
    assert f"{calls} replies came without token counts" in summary.message


def test_every_row_says_what_its_cost_stands_on(prompts: dict[str, Any]) -> None:
    usages = [GOOD, None]

    def reply(_path: str, _body: bytes, before: int) -> dict[str, Any]:
        return reply_with(usages[before % 2])()

    with bare_server(reply) as server:
        settings = {**prompts, "endpoint": server.url, "limit": 2, "max_concurrency": 1}
        summary = run_job(**settings)
        unpriced = run_job(**{**settings, "output": prompts["output"] + "2", "model": "no-such-model"})
    assert [row["cost_basis"] for row in rows_of(summary)] == ["usage", "estimate", *[""] * 18]
    assert list(rows_of(summary)[0])[-1] == "cost_basis", "new columns go at the end"
    assert [row["cost_basis"] for row in read_manifest(local(unpriced.manifest))][:2] == [
        "unknown",
        "unknown",
    ]
    assert unpriced.cost_usd is None


def test_the_books_of_a_queue_hold_what_is_estimated(prompts: dict[str, Any]) -> None:
    """Whoever has workers send counts by them."""
    usages: list[dict[str, Any] | None] = [GOOD, None, None]
    jobs: list[Job] = []

    def reply(_path: str, _body: bytes, before: int) -> dict[str, Any]:
        return reply_with(usages[before % 3])()

    with bare_server(reply) as server:
        settings = {**prompts, "endpoint": server.url, "limit": 6, "max_concurrency": 1}
        summary = run_job(**settings, on_open=jobs.append)
    with closing(Ledger.open(local(summary.output / "ledger.db"))) as ledger:
        account = ledger.queue.totals(jobs[0].context.queue_id)
        sums, counts = account.sums(), account.counts()
    assert sums.estimated == 4
    assert float(counts.cost_usd + sums.estimated_usd) == pytest.approx(float(present(summary.cost_usd)))
