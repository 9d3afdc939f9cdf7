"""No cost limit is ever passed, by what the service bills: in one run, over many, whatever replies come to."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.prices import price_of
from audiobatch.execution import membership
from audiobatch.ledger.membership import Workers
from audiobatch.planning.plan import Retry
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import local, present
from tests.postgresql_server import PostgresqlServer
from tests.running import azure, rows_of, run_job, write_wav

REALTIME = {"deployment": "gpt-realtime", "model": "gpt-realtime", "transport": "realtime"}
WITHOUT_USAGE = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-audio-1.5",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello there."}}
    ],
}


def charged(emulator: EmulatorProcess, model: str = "gpt-audio-1.5") -> Decimal:
    """What the real service would have charged for what the journal has."""
    price = price_of(model)
    rates = {
        "input_text_tokens": present(price).text_in,
        "input_audio_tokens": present(price).audio_in,
        "output_text_tokens": present(price).text_out,
        "output_audio_tokens": present(price).audio_out,
    }
    billed = [call for call in emulator.journal() if call["billed"]]
    return (
        sum((rate * (call[kind] or 0) for call in billed for kind, rate in rates.items()), Decimal(0)) / 10**6
    )


def test_a_follow_up_counts_the_length_that_an_earlier_unbounded_reply_had(
    prompts: Callable[[int], dict[str, Any]],
) -> None:
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "700") as emulator:
        job = {**prompts(1), **azure(emulator, max_concurrency=1)}
        job["turns"] = [{}, {"prompt": "Go on.", "modalities": ["text"]}]
        emulator.put_faults(
            {"when": {"text": "Go on"}, "do": {"status": 429, "headers": {"retry-after": "7200"}}}
        )
        assert run_job(**job).stopped_by == "parked"
        emulator.put_faults()
        before = charged(emulator)
        heard_again = Decimal(700 * 20 * 32) / 10**6
        short = run_job(**job, max_cost=str(heard_again - Decimal("0.02")))
        assert (short.exit_code, short.stopped_by, charged(emulator)) == (6, "max_cost", before)
        enough = run_job(**job, max_cost=str(heard_again + Decimal("0.30")))
        assert (enough.exit_code, enough.succeeded) == (0, 1)
        assert charged(emulator) - before <= heard_again + Decimal("0.30")


@pytest.mark.parametrize("cap", ["0.37", "0.35", "0.25"])
def test_a_session_that_hears_its_own_replies_again_passes_no_limit(
    prompts: Callable[[int], dict[str, Any]], cap: str
) -> None:
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "60") as emulator:
        job = {**prompts(1), **azure(emulator, max_concurrency=1, max_completion_tokens=600, **REALTIME)}
        job["turns"] = [{}, *[{"prompt": "Go on.", "modalities": ["text", "audio"]}] * 4]
        capped = run_job(**job, max_cost=cap)
        assert (capped.exit_code, capped.stopped_by) == (6, "max_cost")
        assert charged(emulator, "gpt-realtime") <= Decimal(cap)
        turns = [row for row in rows_of(capped) if row["status"] == "succeeded"]
        assert int(turns[-1]["input_audio_tokens"]) > 0, "it had heard what it said before"


def run_often(
    emulator: EmulatorProcess, job: dict[str, Any], cap: str, times: int = 4, **first: Any
) -> list[Decimal]:
    """Runs under one limit for all of them; what the service charged for each."""
    before, costs = charged(emulator), []
    for number in range(times):
        summary = run_job(**job, max_total_cost=cap, **(first if number else {}))
        assert summary.exit_code in {3, 6}
        after = charged(emulator)
        costs.append(after - before)
        before = after
    return costs


def test_replies_that_are_paid_for_and_of_no_use_count_in_the_next_run_too(
    prompts: Callable[[int], dict[str, Any]],
) -> None:
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "12") as emulator:
        emulator.put_faults({"do": {"corrupt": "base64"}})
        job = {**prompts(6), **azure(emulator, max_concurrency=1, max_completion_tokens=300)}
        costs = run_often(emulator, {**job, "max_failures": "1000"}, "0.07", retry=Retry())
        assert costs[0] > Decimal("0.03")
        assert sum(costs) <= Decimal("0.07")


def test_what_the_content_filter_has_taken_from_a_reply_counts_in_the_next_run_too(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    table = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"emulator_block_reply {number}"} for number in range(6)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job: dict[str, Any] = {"inputs": [str(table)], "output": str(tmp_path / "out"), "reports": "none"}
    job |= azure(emulator, max_concurrency=1, max_completion_tokens=300, max_failures="1000")
    run_often(emulator, job, "0.07", retry=Retry())
    assert [call["billed"] for call in emulator.journal()] == [True] * 3, "0.0194 each at worst"


def test_replies_without_token_counts_count_at_their_worst_in_every_run(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"do": {"status": 200, "body": WITHOUT_USAGE}})
    job = {**prompts(40), **azure(emulator, max_concurrency=1, max_completion_tokens=300)}
    run_often(emulator, job, "0.07", times=3)
    assert len(emulator.journal()) == 3, "each of them can have cost 0.0194"


def test_a_reply_without_token_counts_that_is_asked_for_again_is_not_free(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"do": {"status": 200, "body": WITHOUT_USAGE}})
    how = azure(emulator, max_concurrency=1, max_completion_tokens=300, retry_text_only=True)
    assert run_job(**prompts(40), **how, max_cost="0.07").exit_code == 6
    assert len(emulator.journal()) == 3


@pytest.mark.parametrize("on_unknown", ["retry", "skip"])
def test_recordings_whose_calls_have_an_unknown_end_count_with_what_was_heard(
    emulator: EmulatorProcess, tmp_path: Path, on_unknown: str
) -> None:
    for number in range(6):
        write_wav(tmp_path / "in" / f"{number}.wav", seconds=60, pitch_hz=200 + number)
    emulator.put_faults({"do": {"reset": "in"}})
    job: dict[str, Any] = {
        "inputs": [str(tmp_path / "in")],
        "output": str(tmp_path / "out"),
        "reports": "none",
    }
    job |= azure(
        emulator, max_concurrency=1, max_completion_tokens=50, max_failures="1000", on_unknown=on_unknown
    )
    job["turns"] = [{"prompt": "What?", "modalities": ["text"]}]
    costs = run_often(emulator, job, "0.05")
    assert costs[0] > 0
    assert sum(costs) <= Decimal("0.05")


def test_every_part_whose_end_is_unknown_counts(tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "long.wav", seconds=240)
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "12") as emulator:
        emulator.put_faults({"do": {"reset": "in"}})
        job = {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "reports": "none"}
        job |= azure(
            emulator, max_concurrency=1, max_completion_tokens=300, max_failures="1000", max_part=1.0
        )
        costs = run_often(emulator, {**job, "on_unknown": "skip"}, "0.13", retry=Retry())
        assert len([call for call in emulator.journal() if call["billed"]]) > 1
        assert sum(costs) <= Decimal("0.13")


def test_calls_of_a_run_without_a_limit_count_in_full_under_a_later_one(
    prompts: Callable[[int], dict[str, Any]],
) -> None:
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "700") as emulator:
        emulator.put_faults({"do": {"reset": "in"}})
        job = {**prompts(3), **azure(emulator, max_concurrency=1, on_unknown="skip", max_failures="1000")}
        assert run_job(**job, limit=1).unknown == 1
        lost = charged(emulator)
        assert lost > Decimal("0.80"), "longer than any reply under a limit"
        emulator.put_faults()
        capped = run_job(**job, max_completion_tokens=300, max_total_cost=str(lost), keep=True)
        assert (capped.exit_code, charged(emulator)) == (6, lost)


def test_refused_calls_cost_nothing_also_in_the_next_run(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"when": {"attempt_below": 1}, "do": {"status": 500}})
    job = {**prompts(3), **azure(emulator, max_concurrency=1, max_completion_tokens=300)}
    assert run_job(**job, limit=2, max_total_cost="0.05").succeeded == 2
    last = run_job(**job, max_total_cost="0.05")
    assert (last.exit_code, last.succeeded) == (0, 1)
    emulator.put_faults()


def test_a_ledger_of_an_earlier_version_counts_what_it_lost_as_whole_replies(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"do": {"reset": "in"}})
    how = azure(
        emulator, max_concurrency=1, on_unknown="skip", max_failures="100%", max_completion_tokens=300
    )
    lost = run_job(**prompts(2), **how)
    assert lost.unknown == 2
    with contextlib.closing(sqlite3.connect(local(lost.output / "ledger.db"))) as ledger:
        ledger.execute("UPDATE attempts SET worst_usd = NULL")
        ledger.commit()
    emulator.put_faults()
    # Two replies of 300 tokens, $64 a million: 0.0384; another needs 0.0194 set aside.
    assert run_job(**prompts(4), **how, max_total_cost="0.055").exit_code == 6
    assert run_job(**prompts(4), **how, max_total_cost="0.10").succeeded == 2


def test_a_prompt_that_is_refused_for_its_length_was_read_and_counts(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    table = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{number} " + "far too long " * 45_000} for number in range(3)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {"inputs": [str(table)], "output": str(tmp_path / "out"), "reports": "none"}
    job |= azure(emulator, max_concurrency=1, max_completion_tokens=300)
    run_often(emulator, job, "2.00", times=2)
    assert [call["billed"] for call in emulator.journal()] == [True], "585,000 bytes: $1.46 at worst"


def test_a_limit_for_several_runs_does_not_end_one_that_has_money_left(
    emulator: EmulatorProcess,
    prompts: Callable[[int], dict[str, Any]],
    postgresql: PostgresqlServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowance = Workers.allowance

    async def slowly(*arguments: Any) -> Any:
        await asyncio.sleep(0.2)  # longer than a call takes: none is in flight when the answer comes
        return await allowance(*arguments)

    monkeypatch.setattr(Workers, "allowance", slowly)
    monkeypatch.setattr(membership, "_BEAT_S", 0.05)
    job = {**prompts(30), **azure(emulator, max_concurrency=1), "ledger": postgresql.url}
    summary = run_job(**job, max_total_cost="100")
    assert (summary.exit_code, summary.succeeded, summary.pending, summary.message) == (0, 30, 0, "")


def test_runs_that_share_a_ledger_pass_no_limit_and_lose_no_row(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]], postgresql: PostgresqlServer
) -> None:
    job = {**prompts(30), **azure(emulator, max_concurrency=2, max_completion_tokens=300)}
    job |= {"ledger": postgresql.url, "max_failures": "1000"}
    emulator.put_faults({"when": {"every": 2}, "do": {"corrupt": "base64"}})
    ended = [run_job(**job, max_total_cost="0.10") for _ in range(3)]
    assert charged(emulator) <= Decimal("0.10")
    assert {result.exit_code for result in ended} == {6}
    first = ended[0]
    assert first.sent >= 3
    assert first.sent + first.pending == 30
