"""Use all of the quota, and never more than the budget: deployments that fail, cost limits, plans."""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.config.prices import price_of
from audiobatch.errors import ConfigError, StorageError
from audiobatch.execution.job import Job
from audiobatch.planning.forecast import forecast
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows import summary_text
from audiobatch_flows.artifacts import markdown
from tests.narrowing import local, present
from tests.running import audiobatch, azure, last_json, rows_of, run_job, write_wav

POOL = ("gpt-audio-1.5", "gpt-audio", "gpt-4o-audio-preview")


def pooled(emulator: EmulatorProcess, *entries: dict[str, Any], **settings: Any) -> dict[str, Any]:
    os.environ["AZURE_OPENAI_API_KEY"] = emulator.api_key
    model = {"model": "gpt-audio-1.5"}
    return {
        "endpoint": emulator.base_url,
        "deployments": [{**model, **entry} for entry in entries],
        **settings,
    }


def spent_by(emulator: EmulatorProcess) -> Decimal:
    """What the real service would have charged for what the journal has."""
    total = Decimal(0)
    for call in emulator.journal():
        if call["billed"]:
            price = price_of("gpt-audio-1.5")
            total += (
                present(price).text_in * (call["input_text_tokens"] or 0)
                + present(price).audio_in * (call["input_audio_tokens"] or 0)
                + present(price).text_out * (call["output_text_tokens"] or 0)
                + present(price).audio_out * (call["output_audio_tokens"] or 0)
            ) / 1_000_000
    return total


def test_a_deployment_that_dies_is_left_and_no_row_is_lost(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"when": {"deployment": "gpt-audio", "nth": 5}, "do": {"status": 404}})
    summary = run_job(**prompts(60), **pooled(emulator, *({"deployment": name} for name in POOL)))
    assert (summary.exit_code, summary.succeeded) == (0, 60)
    served = [row["deployment"] for row in rows_of(summary)]
    assert served.count("gpt-audio") >= 4, "calls that were in flight when it died still ended"
    assert len(emulator.journal()) == 61


def one_row_of_ten_names_a_deployment(tmp_path: Path) -> dict[str, Any]:
    rows = [{"id": f"p{n}", "prompt": f"Say number {n}."} for n in range(10)]
    rows[0]["deployment"] = "gpt-audio"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"inputs": [str(path)], "output": str(tmp_path / "out"), "reports": "none"}


def test_a_deployment_that_a_row_names_takes_no_other_rows(emulator: EmulatorProcess, tmp_path: Path) -> None:
    emulator.put_faults({"do": {"latency_s": 0.1}})
    summary = run_job(**one_row_of_ten_names_a_deployment(tmp_path), **azure(emulator, max_concurrency=2))
    assert summary.succeeded == 10
    served = {row["item_id"]: row["deployment"] for row in rows_of(summary)}
    assert [name for name, deployment in served.items() if deployment == "gpt-audio"] == ["p0"]


def test_without_the_job_s_own_deployment_its_rows_go_to_no_other(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.put_faults({"when": {"deployment": "gpt-audio-1.5"}, "do": {"status": 404}})
    summary = run_job(**one_row_of_ten_names_a_deployment(tmp_path), **azure(emulator, max_concurrency=2))
    assert (summary.exit_code, summary.stopped_by) == (4, "no_deployment")
    assert summary.succeeded <= 1


def two_turns_and_one_that_dies_between(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]], wait_s: float
) -> dict[str, Any]:
    emulator.put_faults(
        {
            "when": {"deployment": "gpt-audio", "nth": 1},
            "do": {"status": 429, "headers": {"retry-after": str(wait_s)}},
        },
        {"when": {"deployment": "gpt-audio-1.5", "text": "Shorter"}, "do": {"status": 404}},
        {"when": {"deployment": "gpt-audio-1.5"}, "do": {"latency_s": 0.3}},
    )
    entries: list[dict[str, Any]] = [
        {"deployment": "gpt-audio-1.5", "max_concurrency": 2},
        {"deployment": "gpt-audio"},
    ]
    return {**prompts(4), **pooled(emulator, *entries, turns=[{}, {"prompt": "Shorter, please."}])}


def test_a_follow_up_whose_deployment_died_is_parked_with_the_one_that_is_left(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    job = two_turns_and_one_that_dies_between(emulator, prompts, 1000)
    summary = run_job(**job)
    assert (summary.exit_code, summary.stopped_by, summary.failed) == (5, "parked", 0)
    assert "wait until" in summary.message


def test_a_follow_up_whose_deployment_died_waits_for_the_one_that_is_left(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiobatch.calls.feedback.PARKED_AFTER_S", 1)
    job = two_turns_and_one_that_dies_between(emulator, prompts, 4)
    summary = run_job(**job, wait=True)
    assert (summary.exit_code, summary.succeeded) == (0, 4)
    assert {row["deployment"] for row in rows_of(summary) if row["turn"] == "2"} == {"gpt-audio"}


def test_priority_fills_the_first_and_overflows_to_the_second(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"do": {"latency_s": 0.05}})
    entries = [
        {"deployment": "gpt-audio", "priority": 1},
        {"deployment": "gpt-audio-1.5", "max_concurrency": 2},
    ]
    summary = run_job(**prompts(30), **pooled(emulator, *entries))
    served = [row["deployment"] for row in rows_of(summary)]
    assert set(served) == {"gpt-audio", "gpt-audio-1.5"}
    assert summary.succeeded == 30


def test_each_deployment_s_price_makes_its_rows_costs(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    price = {"text_in": 0, "text_out": 0, "audio_in": 0, "audio_out": 1000}
    summary = run_job(**prompts(2), **pooled(emulator, {"deployment": "gpt-audio", "price": price}))
    for row in rows_of(summary):
        assert Decimal(row["cost_usd"]) == Decimal(row["output_audio_tokens"]) / 1000


def test_a_wrong_key_costs_one_call_of_each_deployment(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    settings = pooled(emulator, *({"deployment": name} for name in POOL))
    os.environ["AZURE_OPENAI_API_KEY"] = "wrong"
    summary = run_job(**prompts(200), **settings)
    assert (summary.exit_code, summary.succeeded, summary.stopped_by) == (4, 0, "no_deployment")
    assert len(emulator.journal()) == 3


def test_tokens_that_expire_in_mid_run_fail_no_row(
    prompts: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmulatorProcess("--speech", "tone", "--token-life", "1", "--latency", "0.2") as emulator:
        for name, value in emulator.identity_env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        summary = run_job(
            **prompts(40),
            endpoint=emulator.base_url,
            deployment="gpt-audio-1.5",
            auth="entra",
            max_concurrency=4,
        )
    assert (summary.exit_code, summary.succeeded) == (0, 40)


def test_the_cost_limit_is_never_passed_with_64_in_flight(prompts: Callable[[int], dict[str, Any]]) -> None:
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "9", "--latency", "0.1") as emulator:
        job = {**prompts(200), **azure(emulator, max_concurrency=64, max_completion_tokens=300)}
        summary = run_job(**job, max_cost="1.50")
        assert (summary.exit_code, summary.stopped_by) == (6, "max_cost")
        assert "--max-cost 1.50" in summary.message
        assert present(summary.cost_usd) <= Decimal("1.50")
        assert spent_by(emulator) == summary.cost_usd, "and the service's own count says the same"
        assert summary.cost_usd > Decimal("1.45"), "hardly anything of it was left unused"
        again = run_job(**job, max_total_cost="1.60")
        assert again.exit_code == 6
        assert present(summary.cost_usd) + present(again.cost_usd) <= Decimal("1.60")
        rest = run_job(**job, max_cost="5")
        assert (rest.exit_code, rest.pending) == (0, 0)


def test_a_run_that_stops_for_two_reasons_ends_with_the_more_severe_and_tells_both(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    def break_reports(job: Job) -> None:
        def write_all(**_named: Any) -> None:
            raise StorageError("the disk is full")

        job.views.write_all = write_all  # type: ignore[assignment, method-assign]  # a stand-in

    job = {**prompts(10), **azure(emulator, max_concurrency=1, max_completion_tokens=300)}
    summary = run_job(**job, max_cost="0.03", on_open=break_reports)
    assert 0 < summary.succeeded < 10
    assert (summary.exit_code, summary.stopped_by) == (2, "storage")
    assert summary.message.count("the disk is full") == 1
    assert "--max-cost 0.03" in summary.message


def recordings_of(tmp_path: Path, count: int) -> dict[str, Any]:
    for number in range(count):
        write_wav(tmp_path / "in" / f"{number}.wav", seconds=20.0, pitch_hz=200.0 + 10 * number)
    return {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), "reports": "none"}


def test_the_cost_limit_covers_the_calls_that_write_words_down(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    dear = tmp_path / "prices.toml"
    one = 'text_in = "0"\ntext_out = "0"\naudio_in = "{}"\naudio_out = "0"\n'
    cheap, words = one.format("0"), one.format("1000")
    dear.write_text(f'[models."gpt-audio-1.5"]\n{cheap}[models."whisper-1"]\n{words}')
    job = {**recordings_of(tmp_path, 6), **azure(emulator, max_concurrency=1, prices=str(dear))}
    job |= {"transcribe_inputs": "whisper-1", "modalities": "text"}
    summary = run_job(**job, max_cost="0.70")  # a recording's words cost 0.20, at worst 0.24
    assert (summary.exit_code, summary.stopped_by) == (6, "max_cost")
    assert Decimal("0.40") <= present(summary.cost_usd) <= Decimal("0.70")
    written = [call for call in emulator.journal() if call["deployment"] == "whisper-1"]
    assert len(written) == 3
    assert summary.by_deployment["whisper-1"] == (3, summary.cost_usd)
    total = run_job(**job, max_total_cost="1.00")
    assert total.exit_code == 6
    assert present(summary.cost_usd) + present(total.cost_usd) <= Decimal("1.00")


def test_the_plan_counts_the_calls_that_write_words_down_and_their_price(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    job = recordings_of(tmp_path, 3)
    spec = JobSpec(
        **job, endpoint=emulator.base_url, deployment="gpt-audio-1.5", transcribe_inputs="whisper-1"
    )
    plain = forecast(spec.model_copy(update={"transcribe_inputs": None}))
    planned = forecast(spec)
    assert (plain.calls, plain.transcription_calls, planned.calls, planned.transcription_calls) == (
        3,
        0,
        3,
        3,
    )
    added = {
        name: present(planned.cost_usd)[name] - present(plain.cost_usd)[name]
        for name in present(planned.cost_usd)
    }
    assert added["expected"] == Decimal("0.006"), "a minute in all, as whisper-1 is billed"
    assert added["low"] < added["expected"] < added["high"]
    both = forecast(spec.model_copy(update={"verify_speech": "whisper-1"}))
    assert both.transcription_calls == 6
    summary = run_job(**job, **azure(emulator, transcribe_inputs="whisper-1"))
    assert present(planned.cost_usd)["low"] <= present(summary.cost_usd) <= present(planned.cost_usd)["high"]
    assert forecast(spec).transcription_calls == 0, "their words are there"
    verified = forecast(spec.model_copy(update={"verify_speech": "whisper-1"}))
    assert (verified.calls, verified.transcription_calls) == (0, 3), (
        "only the replies that are there are listened to"
    )


def test_what_a_realtime_session_writes_down_is_planned_for_paid_for_and_limited(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    dear = tmp_path / "prices.toml"
    one = 'text_in = "0"\ntext_out = "0"\naudio_in = "{}"\naudio_out = "0"\n'
    dear.write_text(f'[models."gpt-realtime"]\n{one.format(0)}[models."whisper-1"]\n{one.format(1000)}')
    model = {"deployment": "gpt-realtime", "model": "gpt-realtime", "transcription_model": "whisper-1"}
    how = azure(emulator, max_concurrency=1, prices=str(dear), transport="realtime", **model)
    job = {**recordings_of(tmp_path, 4), **how}
    planned = forecast(JobSpec(**job))
    assert present(planned.cost_usd)["expected"] == Decimal("0.80"), (
        "80 s, 10 tokens a second, $1000 a million"
    )
    capped = run_job(**job, max_cost="0.50")
    assert (capped.exit_code, capped.stopped_by, capped.cost_usd) == (6, "max_cost", Decimal("0.40"))
    assert [row["cost_usd"] for row in rows_of(capped) if row["cost_usd"]] == ["0.2", "0.2"]
    rest = run_job(**job)
    assert (
        present(planned.cost_usd)["low"]
        <= present(capped.cost_usd) + present(rest.cost_usd)
        <= present(planned.cost_usd)["high"]
    )
    with pytest.raises(ConfigError, match="transcription-model 'mystery'"):
        run_job(**{**job, "transcription_model": "mystery"}, max_cost="1")


def test_the_plan_counts_the_calls_that_write_down_what_a_realtime_session_hears(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    model = {"deployment": "gpt-realtime", "model": "gpt-realtime", "transport": "realtime"}
    how = azure(emulator, modalities="text", transcribe_inputs="whisper-1", **model)
    job = {**recordings_of(tmp_path, 2), **how}
    planned = forecast(JobSpec(**job))
    summary = run_job(**job)
    written = [call for call in emulator.journal() if call["deployment"] == "whisper-1"]
    assert planned.transcription_calls == len(written) == 2
    text_in = sum(int(row["input_text_tokens"]) for row in rows_of(summary))
    of = planned.tokens["input_text_tokens"]
    assert of.low <= text_in <= of.high, "a session without a system prompt has the service's own"
    assert present(planned.cost_usd)["low"] <= present(summary.cost_usd) <= present(planned.cost_usd)["high"]
    plain = forecast(JobSpec(**{**job, "transcribe_inputs": None, "output": str(tmp_path / "other")}))
    assert present(planned.cost_usd)["expected"] - present(plain.cost_usd)["expected"] == Decimal("0.004"), (
        "40 s by whisper-1"
    )


def test_where_the_session_writes_down_too_a_second_writing_is_no_more_than_possible(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """These tones have no words: the session finds none, and the call is made all the same."""
    model = {"deployment": "gpt-realtime", "model": "gpt-realtime", "transport": "realtime"}
    model |= {"transcription_model": "whisper-1", "transcribe_inputs": "whisper-1", "modalities": "text"}
    job = {**recordings_of(tmp_path, 1), **azure(emulator, **model)}
    planned = forecast(JobSpec(**job))
    summary = run_job(**job)
    written = [call for call in emulator.journal() if call["deployment"] == "whisper-1"]
    assert (planned.transcription_calls, len(written)) == (0, 1)
    assert (
        present(planned.cost_usd)["expected"] < present(summary.cost_usd) <= present(planned.cost_usd)["high"]
    )


def test_calls_with_an_unknown_end_are_charged_for_no_longer_replies_than_the_job_asks_for(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"do": {"reset": "in"}})
    how = azure(
        emulator, max_concurrency=1, on_unknown="skip", max_failures="100%", max_completion_tokens=200
    )
    assert run_job(**prompts(2), **how).unknown == 2
    emulator.put_faults()
    # Two lost calls of 200 tokens at most, $64 a million: $0.0256. Of 4096 tokens each they would fill the limit.
    again = run_job(**prompts(4), **how, max_total_cost="0.12")
    assert again.succeeded == 2
    assert again.exit_code in {0, 3}


def test_what_each_deployment_cost_stands_under_the_total(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    entries: list[dict[str, Any]] = [
        {"deployment": "gpt-audio", "max_concurrency": 2},
        {"deployment": "gpt-audio-1.5"},
    ]
    emulator.put_faults({"do": {"latency_s": 0.05}})
    summary = run_job(**prompts(20), **pooled(emulator, *entries))
    rows = dict(summary_text.rows(summary))
    assert {name for name in rows if name.startswith("cost at ")} == {
        "cost at gpt-audio",
        "cost at gpt-audio-1.5",
    }
    assert sum((present(cost) for _, cost in summary.by_deployment.values()), Decimal(0)) == summary.cost_usd
    assert sum(calls for calls, _ in summary.by_deployment.values()) == 20
    assert "cost at gpt-audio" in markdown(summary)
    alone = run_job(**{**prompts(2), "output": f"{prompts(2)['output']}-2"}, **azure(emulator))
    assert not any(name.startswith("cost at ") for name, _ in summary_text.rows(alone))


def test_stop_at_ends_a_run_orderly_and_the_next_goes_on(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.put_faults({"do": {"latency_s": 0.3}})
    job = {**prompts(12), **azure(emulator, max_concurrency=2)}
    # Nobody waits for six o'clock: it is in a second and a half.
    monkeypatch.setattr(
        JobSpec, "stop_time", lambda spec, now: now + timedelta(seconds=1.5) if spec.stop_at else None
    )
    stopped = run_job(**job, stop_at="06:00")
    assert (stopped.exit_code, stopped.stopped_by) == (5, "stop_at")
    assert "--stop-at 06:00" in stopped.message
    assert stopped.succeeded + stopped.pending == 12
    assert stopped.pending > 0
    assert stopped.unknown == 0, "calls in flight came to their end"
    emulator.put_faults()
    assert run_job(**job).succeeded == stopped.pending
    assert len(emulator.journal()) == 12


def test_a_cost_limit_without_a_known_price_sends_nothing(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match=r"price of model 'mystery' of .* is not known.*nothing was sent"):
        run_job(**prompts(2), **azure(emulator, model="mystery", max_cost="1"))
    assert emulator.journal() == []


def test_the_limits_that_a_realtime_session_tells_are_kept_to(
    prompts: Callable[[int], dict[str, Any]],
) -> None:
    model = "gpt-realtime"
    jobs: list[Job] = []
    with EmulatorProcess("--speech", "tone", "--quota", f"{model}=rpm:300,tpm:70000") as emulator:
        how = azure(emulator, deployment=model, model=model, transport="realtime")
        summary = run_job(on_open=jobs.append, **prompts(12), **how)
        refused = sum(call["status"] == 429 for call in emulator.journal())
    assert (summary.exit_code, summary.succeeded) == (0, 12)
    [deployment] = present(jobs[0]._runner).context.pool.deployments
    assert deployment.limiter.rate.stated == 300
    assert deployment.limiter.tokens.per_minute == 70_000
    assert refused <= 4, "the first call told how many pass"


def test_calls_that_were_announced_when_the_service_asks_for_a_wait_are_taken_back_and_made_later(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    """Where a rate is kept, some are always between being announced and leaving."""
    emulator.put_faults({"when": {"nth": 10}, "do": {"status": 429, "headers": {"retry-after": "2"}}})
    summary = run_job(
        **prompts(30), **pooled(emulator, {"deployment": POOL[0], "rpm": 600, "max_concurrency": 16})
    )
    assert (summary.exit_code, summary.succeeded) == (0, 30)
    assert sum(call["status"] == 429 for call in emulator.journal()) == 1
    assert sorted(int(row["attempts"]) for row in rows_of(summary)) == [1] * 29 + [2]
    with contextlib.closing(sqlite3.connect(local(summary.output / "ledger.db"))) as ledger:
        ends = dict(ledger.execute("select state, count(*) from attempts group by state").fetchall())
    assert ends["succeeded"] == 30
    assert 2 <= ends["failed"] <= 12, "the one that was refused, and those that were taken back"
    assert ends.keys() == {"succeeded", "failed"}


def test_a_wait_of_a_day_ends_the_run_resumable_and_says_when_to_come_back(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"when": {"nth": 4}, "do": {"status": 429, "headers": {"retry-after": "86400"}}})
    job = {**prompts(10), **azure(emulator, max_concurrency=1)}
    summary = run_job(**job)
    assert (summary.exit_code, summary.stopped_by, summary.succeeded, summary.failed) == (5, "parked", 3, 0)
    tomorrow = time.strftime("%Y-%m-%d", time.localtime(time.time() + 86_400))
    assert tomorrow in summary.message
    emulator.put_faults()
    assert run_job(**job).succeeded == 7


def test_a_wait_of_a_day_at_one_deployment_leaves_the_work_to_the_others(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    rule = {
        "when": {"deployment": "gpt-audio-1.5"},
        "do": {"status": 429, "headers": {"retry-after": "86400"}},
    }
    emulator.put_faults(rule)
    summary = run_job(**prompts(10), **pooled(emulator, *({"deployment": name} for name in POOL)))
    assert (summary.exit_code, summary.succeeded) == (0, 10)
    assert sum(call["deployment"] == "gpt-audio-1.5" for call in emulator.journal()) == 1


def test_an_outage_costs_few_calls_and_fails_nothing(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"when": {"before_s": 4}, "do": {"status": 503}})
    summary = run_job(**prompts(150), **azure(emulator, max_concurrency=32))
    assert (summary.exit_code, summary.succeeded, summary.failed) == (0, 150, 0)
    troubled = sum(call["status"] == 503 for call in emulator.journal())
    assert troubled <= 40, f"{troubled} calls were made into the outage"


def test_a_row_s_own_deployment_that_is_gone_fails_that_row_alone(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    table = tmp_path / "rows.jsonl"
    rows = [{"prompt": "One."}, {"prompt": "Two.", "deployment": "no-such"}, {"prompt": "Three."}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run_job(inputs=[str(table)], output=str(tmp_path / "out"), reports="none", **azure(emulator))
    assert (summary.exit_code, summary.succeeded, summary.failed) == (3, 2, 1)
    assert [row["error_type"] for row in rows_of(summary)] == ["", "deployment", ""]


def test_a_follow_up_moves_by_the_reply_s_words_when_its_deployment_dies(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Tell me of rivers.")
    entries: list[dict[str, Any]] = [
        {"deployment": "gpt-audio-1.5"},
        {"deployment": "gpt-audio", "priority": 1},
    ]
    emulator.put_faults({"when": {"deployment": "gpt-audio-1.5", "nth": 2}, "do": {"status": 404}})
    summary = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        turns=[{"prompt": ""}, {"prompt": "Shorter, please."}],
        **pooled(emulator, *entries),
    )
    rows = rows_of(summary)
    assert [row["deployment"] for row in rows] == ["gpt-audio-1.5", "gpt-audio"]
    assert summary.exit_code == 0
    assert sum(call["billed"] for call in emulator.journal()) == 2, "the first turn is not bought again"


def test_too_many_failures_stop_the_job_early(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]]
) -> None:
    emulator.put_faults({"do": {"status": 400}})
    summary = run_job(**prompts(300), **azure(emulator, max_concurrency=4))
    assert (summary.exit_code, summary.stopped_by) == (6, "max_failures")
    assert len(emulator.journal()) <= 28


def test_the_plan_sends_nothing_and_the_actual_lies_where_it_said(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    job = prompts(20)
    command = [*job["inputs"], "--output", job["output"], "--endpoint", emulator.base_url]
    command += ["--deployment", "gpt-audio-1.5", "--reports", "none"]
    env = {"AZURE_OPENAI_API_KEY": emulator.api_key}
    planned = last_json(audiobatch("plan", *command, "--json", env=env).stdout)
    assert emulator.journal() == []
    assert not (tmp_path / "out").exists()
    assert (planned["items"], planned["to_send"], planned["calls"]) == (20, 20, 20)

    few = last_json(
        audiobatch("run", *command, "--limit", "5", "--no-prefect", "--json", "-q", env=env).stdout
    )
    rest = last_json(audiobatch("plan", *command, "--json", env=env).stdout)
    assert (rest["to_send"], rest["done"], rest["earlier_replies"]) == (15, 5, 5)
    ran = last_json(audiobatch("run", *command, "--no-prefect", "--json", "-q", env=env).stdout)
    cost = rest["cost_usd"]
    assert cost["low"] <= ran["cost_usd"] <= cost["high"]
    assert ran["cost_usd"] == pytest.approx(cost["expected"], rel=0.15)
    whole = planned["cost_usd"]
    assert whole["low"] <= ran["cost_usd"] + few["cost_usd"] <= whole["high"]


def test_the_plan_names_what_is_refused_and_why(tmp_path: Path, emulator: EmulatorProcess) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_text("Say hello.")
    (tmp_path / "in" / "empty.txt").write_text("")
    told = audiobatch(
        "plan", tmp_path / "in", "--provider", "local", "--rpm", "60", "--output", tmp_path / "o"
    )
    assert told.returncode == 0, told.stderr
    assert "empty.txt: " in told.stdout
    assert "expected" in told.stdout
    assert "time   1.0 s" in told.stdout


def test_the_doctor_says_what_is_wrong_and_what_to_do(emulator: EmulatorProcess, tmp_path: Path) -> None:
    command: list[str | Path] = [
        "doctor",
        "--endpoint",
        emulator.base_url,
        "--deployment",
        "gpt-audio-1.5",
        "--output",
        tmp_path / "o",
    ]
    well = audiobatch(*command, "--call", env={"AZURE_OPENAI_API_KEY": emulator.api_key})
    assert well.returncode == 0, well.stdout + well.stderr
    assert "answered in" in well.stdout
    assert emulator.api_key not in well.stdout
    wrong = audiobatch(*command, "--call", env={"AZURE_OPENAI_API_KEY": "canary-of-a-key"})
    assert wrong.returncode == 4
    assert "FAILED" in wrong.stdout
    assert "check the key" in wrong.stdout
    assert "canary" not in wrong.stdout


def test_items_that_the_budget_of_retries_refuses_go_to_the_end_and_are_never_failed(
    emulator: EmulatorProcess, prompts: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from audiobatch.execution import wiring
    from audiobatch.limits.retry import RetryBudget

    monkeypatch.setattr(wiring, "RetryBudget", partial(RetryBudget, capacity=1.0, tokens=1.0))
    emulator.put_faults({"when": {"attempt_below": 1, "every": 4}, "do": {"status": 500}})
    summary = run_job(**prompts(24), **azure(emulator, max_concurrency=2))
    assert (summary.exit_code, summary.succeeded, summary.failed) == (0, 24, 0)
    rows = rows_of(summary)
    tried_again = [row for row in rows if row["attempts"] == "2"]
    assert len(tried_again) >= 4, "attempts of before the deferral are counted"
    last = max(row["finished_at"] for row in rows if row["attempts"] == "1")
    assert any(row["finished_at"] >= last for row in tried_again), "they went after the others"
    assert "items were deferred" in local(summary.output / "runs" / f"{summary.run_id}.log").read_text()
