"""What the service can do to a run, and what must come of it: money first, then patience."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiobatch.calls.stats import RunSummary
from audiobatch.errors import StorageError
from audiobatch.execution.job import Job
from audiobatch.ledger.writer import LedgerWriter
from audiobatch.planning.plan import Plan
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import present
from tests.running import audiobatch, azure, rows_of, run_job, write_wav


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "abcdef":
        (tmp_path / "in" / f"{name}.txt").write_text(f"Say something about {name}.")
    return tmp_path


def send(
    emulator: EmulatorProcess,
    folder: Path,
    *,
    on_open: Callable[[Job], object] | None = None,
    **settings: Any,
) -> RunSummary:
    return run_job(
        inputs=[str(folder / "in")],
        output=str(folder / "out"),
        on_open=on_open,
        **azure(emulator, max_concurrency=4, **settings),
    )


def billed(emulator: EmulatorProcess) -> int:
    return sum(call["billed"] for call in emulator.journal())


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
def test_what_passes_is_tried_again_and_every_item_is_bought_once(
    status: int, emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults(
        {"when": {"attempt_below": 1}, "do": {"status": status, "headers": {"retry-after-ms": "50"}}}
    )
    summary = send(emulator, folder)
    assert (summary.exit_code, summary.succeeded) == (0, 6)
    assert {row["attempts"] for row in rows_of(summary)} == {"2"}
    assert {row["perhaps_billed"] for row in rows_of(summary)} == {"0"}
    assert billed(emulator) == 6


def test_a_reply_that_breaks_off_is_unknown_and_counted_as_perhaps_billed(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"attempt_below": 1, "text": "about a"}, "do": {"reset": "in"}})
    summary = send(emulator, folder)
    rows = {row["item_id"]: row for row in rows_of(summary)}
    assert summary.succeeded == 6
    assert (rows["a.txt"]["attempts"], rows["a.txt"]["perhaps_billed"]) == ("2", "1")
    assert {rows[f"{name}.txt"]["perhaps_billed"] for name in "bcdef"} == {"0"}
    assert billed(emulator) == 7


def test_status_says_what_calls_of_an_unknown_end_can_have_cost(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": {"reset": "in"}})
    send(emulator, folder, on_unknown="skip", max_completion_tokens=100)
    said = audiobatch("status", folder / "out").stdout
    assert re.search(r"spent so far \$0\.\d+, and 1 call whose cost is not known, at most \$0\.00\d+\n", said)
    counts = json.loads(audiobatch("status", folder / "out", "--json").stdout)
    assert counts["calls_of_unknown_cost"] == 1
    assert 0 < counts["their_cost_at_most_usd"] < 0.01


def test_on_unknown_skip_leaves_the_item_and_says_so(emulator: EmulatorProcess, folder: Path) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": {"reset": "in"}})
    summary = send(emulator, folder, on_unknown="skip")
    row = rows_of(summary)[0]
    assert (summary.exit_code, summary.unknown, row["status"], row["attempts"]) == (3, 1, "unknown", "1")
    assert send(emulator, folder, on_unknown="skip").sent == 0
    emulator.put_faults()
    assert send(emulator, folder, on_unknown="retry").succeeded == 1


def test_an_unknown_call_is_made_again_at_most_twice(emulator: EmulatorProcess, folder: Path) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": {"reset": "in"}})
    summary = send(emulator, folder)
    row = rows_of(summary)[0]
    assert (row["status"], row["attempts"], row["perhaps_billed"]) == ("unknown", "3", "3")
    before = len(emulator.journal())
    assert send(emulator, folder).sent == 0
    assert len(emulator.journal()) == before


@pytest.mark.parametrize("corrupt", ["base64", "json", "html", "no_audio"])
def test_a_useless_reply_is_a_failed_row_with_its_body_kept(
    corrupt: str, emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": {"corrupt": corrupt}})
    summary = send(emulator, folder)
    row = rows_of(summary)[0]
    assert (summary.exit_code, row["status"], row["error_type"]) == (3, "failed", "bad_reply")
    assert any((folder / "out" / "replies").iterdir())
    assert row["attempts"] == "1", "buying again is the user's choice"


def completion(**fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}
    return {"id": "x", "choices": [choice | fields.pop("choice", {})], **fields}


ODD_COUNTS = {
    "fractions": {"prompt_tokens": 5.5, "completion_tokens": 5},
    "more than any call takes": {"prompt_tokens": 1e20, "completion_tokens": 5},
    "words": {"prompt_tokens": "many", "completion_tokens": 5},
    "negative": {"prompt_tokens": -5, "completion_tokens": 5},
    "details in a list": {"prompt_tokens": 5, "completion_tokens": 5, "prompt_tokens_details": [1]},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("usage", ODD_COUNTS.values(), ids=ODD_COUNTS)
def test_a_reply_with_odd_token_counts_is_kept_and_its_cost_is_an_estimate(
    usage: dict[str, Any], stream: bool, emulator: EmulatorProcess, folder: Path
) -> None:
    put_answer(emulator, completion(usage=usage), stream)
    summary = send(emulator, folder, stream=stream)
    row = rows_of(summary)[0]
    assert (summary.exit_code, summary.succeeded) == (0, 6)
    assert (row["transcript"], row["cost_basis"], row["input_text_tokens"]) == ("Hello.", "estimate", "")
    assert 0 < float(row["cost_usd"]) < 0.001


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_counts_that_are_whole_numbers_count_however_they_are_written(
    stream: bool, emulator: EmulatorProcess, folder: Path
) -> None:
    put_answer(emulator, completion(usage={"prompt_tokens": "5", "completion_tokens": 7.0}), stream)
    row = rows_of(send(emulator, folder, stream=stream))[0]
    assert (row["input_text_tokens"], row["output_text_tokens"]) == ("5", "7")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_odd_reason_or_time_is_no_reason_to_lose_the_reply(
    stream: bool, emulator: EmulatorProcess, folder: Path
) -> None:
    sound = {"id": {"a": 1}, "expires_at": "soon", "transcript": "Hi."}
    sound["data"] = base64.b64encode(b"\1\2" * 999).decode()
    message = {"role": "assistant", "content": None, "audio": sound}
    answer = completion(choice={"finish_reason": {"type": "stop"}, "message": message})
    put_answer(emulator, answer, stream)
    summary = send(emulator, folder, stream=stream, format="pcm16")
    row = rows_of(summary)[0]
    assert (summary.exit_code, row["status"], row["transcript"]) == (0, "succeeded", "Hi.")
    assert row["finish_reason"] == "{'type': 'stop'}"


ODD_REPLIES = {
    "no samples": {"message": {"audio": {"id": "a", "transcript": "Hi.", "data": "AQ=="}}},
    "half a header": {"message": {"audio": {"id": "a", "data": base64.b64encode(b"RIFFxxxxWAVE").decode()}}},
    "words in a list": {"message": {"content": [{"type": "text", "text": "Hi."}]}},
    "no message": {"message": 5},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("choice", ODD_REPLIES.values(), ids=ODD_REPLIES)
def test_a_reply_that_cannot_be_read_fails_its_row_alone_and_is_bought_once(
    choice: dict[str, Any], stream: bool, emulator: EmulatorProcess, folder: Path
) -> None:
    put_answer(emulator, completion(choice=choice, usage={"prompt_tokens": 1}), stream)
    summary = send(emulator, folder, stream=stream, format="mp3")
    row = rows_of(summary)[0]
    assert (summary.exit_code, summary.succeeded, summary.pending) == (3, 5, 0)
    assert (row["status"], row["error_type"], row["attempts"]) == ("failed", "bad_reply", "1")
    assert len(list((folder / "out" / "replies").iterdir())) == 1, "the body is kept"
    assert send(emulator, folder, stream=stream, format="mp3").sent == 0
    assert billed(emulator) <= 6


def put_answer(emulator: EmulatorProcess, body: Any, stream: bool) -> None:
    """What the service says of a.txt."""
    headers = {}
    if stream:
        (choice,) = body["choices"]
        chunk = {**body, "choices": [{**choice, "delta": choice["message"]}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        headers = {"content-type": "text/event-stream"}
    emulator.put_faults(
        {"when": {"text": "about a"}, "do": {"status": 200, "body": body, "headers": headers}}
    )


def test_a_reply_of_text_alone_is_saved_and_flagged(emulator: EmulatorProcess, folder: Path) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": {"corrupt": "text_only"}})
    row = rows_of(send(emulator, folder))[0]
    assert (row["status"], row["checks"], row["audio_file"]) == ("succeeded", "text_only", "")


def test_a_reply_of_text_alone_is_asked_for_once_more_if_the_job_says_so(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"text": "about a", "attempt_below": 1}, "do": {"corrupt": "text_only"}})
    row = rows_of(send(emulator, folder, retry_text_only=True))[0]
    assert (row["status"], row["checks"], row["attempts"]) == ("succeeded", "", "2")
    assert billed(emulator) == 7


def test_both_replies_are_in_the_row_when_the_first_was_of_text_alone(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"text": "about a", "attempt_below": 1}, "do": {"corrupt": "text_only"}})
    summary = send(emulator, folder, retry_text_only=True)
    rows = rows_of(summary)
    billed_tokens = sum(
        call["output_text_tokens"] + call["output_audio_tokens"] for call in emulator.journal()
    )
    assert paid_in(rows) == pytest.approx(float(present(summary.cost_usd)))
    assert (
        sum(int(row["output_text_tokens"]) + int(row["output_audio_tokens"]) for row in rows) == billed_tokens
    )


@pytest.mark.parametrize("settings", [{}, {"max_part": 0.5}], ids=["whole", "in parts"])
def test_a_reply_that_waits_for_a_better_one_is_brought_home_when_the_ledger_fails(
    settings: dict[str, Any], emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "in" / "a.wav", seconds=60)
    emulator.put_faults({"do": {"corrupt": "text_only"}})
    wanted = {"retry_text_only": True, **settings}

    async def full(_self: object, _end: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(LedgerWriter, "record_end", full)
        first = send(emulator, tmp_path, **wanted)
    assert (first.exit_code, first.stopped_by) == (2, "storage")
    paid = [call["item_hash"] for call in emulator.journal()]
    emulator.put_faults()
    second = send(emulator, tmp_path, **wanted)
    (row,) = rows_of(second)
    parts = int(row["parts"] or 1)
    assert row["status"] == "succeeded"
    assert row["checks"] == "text_only"
    assert len(emulator.journal()) == parts
    assert set(paid).isdisjoint(call["item_hash"] for call in emulator.journal()[len(paid) :])


def paid_in(rows: list[dict[str, str]]) -> float:
    return sum(float(row["cost_usd"]) for row in rows)


def test_a_failed_row_says_what_its_reply_cost_where_that_is_known(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": {"status": 200, "body": unusable_wav()}})
    summary = send(emulator, folder)
    row = rows_of(summary)[0]
    assert (row["status"], row["error_type"]) == ("failed", "bad_reply")
    assert (row["input_text_tokens"], row["output_audio_tokens"]) == ("5", "40")
    assert paid_in(rows_of(summary)) == pytest.approx(float(present(summary.cost_usd)))


def unusable_wav() -> dict[str, Any]:
    sound = {"id": "a", "transcript": "Hi.", "data": base64.b64encode(b"no sound").decode(), "expires_at": 1}
    usage = {"prompt_tokens": 5, "completion_tokens": 40, "completion_tokens_details": {"audio_tokens": 40}}
    return completion(choice={"message": {"role": "assistant", "content": None, "audio": sound}}, usage=usage)


@pytest.mark.parametrize("fault", [{"corrupt": "json"}, {"reset": "in"}], ids=["useless", "lost"])
def test_what_a_run_cost_is_not_known_where_a_call_was_perhaps_billed(
    fault: dict[str, str], emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {"text": "about a"}, "do": fault})
    summary = send(emulator, folder, on_unknown="skip")
    assert (summary.succeeded, summary.cost_usd) == (5, None)
    emulator.put_faults()
    (folder / "in" / "g.txt").write_text("Say something about g.")
    assert send(emulator, folder, on_unknown="skip").cost_usd is not None


def test_sent_are_items_of_which_a_call_was_made_whether_or_not_they_ended(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults(
        {"when": {"text": "Go on"}, "do": {"status": 429, "headers": {"retry-after": "7200"}}}
    )
    summary = send(emulator, folder, prompt=["", "Go on."])
    assert (summary.stopped_by, summary.succeeded, summary.pending) == ("parked", 0, 6)
    called = len({call["item_hash"] for call in emulator.journal() if call["status"] == 200})
    assert summary.sent == called > 0


def test_an_input_that_is_gone_when_its_turn_comes_was_not_sent(
    emulator: EmulatorProcess, folder: Path
) -> None:
    for path in (folder / "in").iterdir():
        path.unlink()
    write_wav(folder / "in" / "a.wav", seconds=1)

    def lose_it(job: Job) -> None:
        prepare = job.prepare

        async def then_lose() -> Plan:
            plan = await prepare()
            (folder / "in" / "a.wav").unlink()
            return plan

        job.prepare = then_lose  # type: ignore[method-assign]  # a stand-in

    summary = send(emulator, folder, on_open=lose_it)
    assert (summary.failed, summary.sent, emulator.journal()) == (1, 0, [])


def test_a_reply_that_is_asked_for_again_for_a_flaw_still_counts_the_lost_call(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults(
        {"when": {"text": "about a", "attempt_below": 1}, "do": {"reset": "in"}},
        {"when": {"text": "about a", "attempt_below": 2}, "do": {"corrupt": "silent"}},
    )
    row = rows_of(send(emulator, folder, on_check=["silent=redo"]))[0]
    assert (row["status"], row["checks"], row["version"]) == ("succeeded", "", "2")
    assert (row["attempts"], row["perhaps_billed"]) == ("3", "1")


def test_a_filtered_prompt_is_final_and_names_the_filter(emulator: EmulatorProcess, folder: Path) -> None:
    (folder / "in" / "a.txt").write_text("Say emulator_block_prompt now.")
    summary = send(emulator, folder)
    row = rows_of(summary)[0]
    assert (row["status"], row["error_type"], row["attempts"]) == ("failed", "content_filter", "1")
    assert send(emulator, folder).sent == 0


def test_a_wrong_key_stops_the_run_after_one_call(
    emulator: EmulatorProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = audiobatch(
        *("run", folder / "in", "--output", folder / "out", "--no-prefect", "--deployment", "gpt-audio-1.5"),
        env={"AZURE_OPENAI_ENDPOINT": emulator.base_url, "AZURE_OPENAI_API_KEY": "wrong-canary-key"},
    )
    assert done.returncode == 4
    assert "invalid subscription key" in done.stdout + done.stderr
    assert [call["status"] for call in emulator.journal()] == [401]
    assert "wrong-canary-key" not in done.stdout + done.stderr
    for path in (folder / "out").rglob("*"):
        if path.is_file():
            assert b"wrong-canary-key" not in path.read_bytes(), path


def test_a_service_that_repeats_the_key_has_it_hidden_and_commands_no_terminal(
    emulator: EmulatorProcess, folder: Path
) -> None:
    words = f"Incorrect API key provided: {emulator.api_key}. \x1b]0;owned\x07\x1b[2J"
    emulator.put_faults({"when": {}, "do": {"status": 401, "body": {"error": {"message": words}}}})
    done = audiobatch(
        *("run", folder / "in", "--output", folder / "out", "--no-prefect", "--deployment", "gpt-audio-1.5"),
        env={"AZURE_OPENAI_ENDPOINT": emulator.base_url, "AZURE_OPENAI_API_KEY": emulator.api_key},
    )
    said = done.stdout + done.stderr
    assert done.returncode == 4
    assert "Incorrect API key provided: …." in said
    assert not {"\x1b", "\x07"} & set(said)
    for path in (folder / "out").rglob("*"):
        if path.is_file():
            assert emulator.api_key.encode() not in path.read_bytes(), path


def test_a_deployment_that_is_not_there_stops_the_run_after_one_call(
    emulator: EmulatorProcess, folder: Path
) -> None:
    summary = run_job(
        inputs=[str(folder / "in")],
        output=str(folder / "out"),
        **{**azure(emulator, api_version="2025-01-01-preview"), "deployment": "nowhere"},
    )
    assert (summary.exit_code, summary.stopped_by) == (4, "no_deployment")
    assert len(emulator.journal()) == 1
    statuses = [row["status"] for row in rows_of(summary)]
    assert statuses.count("pending") == 5
    assert (summary.failed, rows_of(summary)[statuses.index("failed")]["error_type"]) == (1, "deployment")


def test_no_credit_stops_the_run_and_is_never_retried(emulator: EmulatorProcess, folder: Path) -> None:
    body = {"error": {"message": "You exceeded your current quota.", "type": "insufficient_quota",
                      "param": None, "code": "insufficient_quota"}}  # fmt: skip
    emulator.put_faults({"when": {}, "do": {"status": 429, "body": body}})
    summary = send(emulator, folder)
    assert (summary.exit_code, len(emulator.journal())) == (4, 1)


def test_a_named_deployment_that_dies_between_two_turns_costs_no_reply(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    rows = [{"id": f"p{n}", "prompt": f"Say number {n}.", "deployment": "gpt-audio"} for n in range(3)]
    rows.append({"id": "other", "prompt": "Say hello."})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spent = {"code": "insufficient_quota", "type": "insufficient_quota", "message": "no credit"}
    emulator.put_faults(
        {
            "when": {"deployment": "gpt-audio", "text": "Shorter", "nth": 1},
            "do": {"status": 429, "body": {"error": spent}},
        },
        {"when": {"deployment": "gpt-audio", "nth": 1}, "do": {}},
        {"do": {"latency_s": 0.5}},
    )
    job = {
        "inputs": [str(tmp_path / "p.jsonl")],
        "output": str(tmp_path / "out"),
        "turns": [{}, {"prompt": "Shorter, please."}],
        "max_failures": "100%",
        **azure(emulator, max_concurrency=3),
    }
    summary = run_job(**job)
    assert (summary.exit_code, summary.succeeded, summary.failed) == (3, 1, 3)
    by_turn = {(row["item_id"], row["turn"]): row for row in rows_of(summary)}
    for name in ("p0", "p1", "p2"):
        assert by_turn[name, "1"]["status"] == "succeeded"
        assert (tmp_path / "out" / by_turn[name, "1"]["audio_file"]).exists()
        assert by_turn[name, "2"]["error_type"] == "credit"
    emulator.put_faults()
    before = billed(emulator)
    assert run_job(**job).succeeded == 3
    assert billed(emulator) - before == 3, "no first turn was bought a second time"


def test_a_row_that_could_not_be_sent_nor_recorded_ends_the_run_in_order(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    rows = [{"id": f"p{n}", "prompt": f"Say number {n}.", "deployment": "gone"} for n in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def break_ledger(job: Job) -> None:
        async def record_outcome(*_arguments: object, **_named: Any) -> None:
            raise StorageError("no space is left")

        job.context.ledger.writer.record_outcome = record_outcome  # type: ignore[assignment, method-assign]  # a stand-in

    summary = run_job(
        inputs=[str(tmp_path / "p.jsonl")],
        output=str(tmp_path / "out"),
        on_open=break_ledger,
        **azure(emulator),
    )
    assert (summary.exit_code, summary.stopped_by, summary.pending) == (2, "storage", 3)


def test_a_refused_token_is_renewed_once_for_all_and_no_row_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmulatorProcess("--speech", "tone", "--latency", "0.3") as emulator:
        for name, value in emulator.identity_env.items():
            monkeypatch.setenv(name, value)
        emulator.put_faults({"when": {"nth": 3}, "do": {"expire_tokens": True}})
        summary = run_job(
            inputs=[str(folder / "in")],
            output=str(folder / "out"),
            endpoint=emulator.base_url,
            deployment="gpt-audio-1.5",
            max_concurrency=2,
        )
    assert (summary.exit_code, summary.succeeded, summary.failed) == (0, 6, 0)


def test_a_service_that_is_not_there_is_said_to_be_unreachable(folder: Path) -> None:
    done = audiobatch(
        *("run", folder / "in", "--output", folder / "out", "--no-prefect", "--deployment", "x"),
        env={"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9", "AZURE_OPENAI_API_KEY": "k"},
    )
    assert done.returncode == 4
    assert "not reached" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_wait_of_hours_parks_the_run_with_the_time_to_come_back(
    emulator: EmulatorProcess, folder: Path
) -> None:
    emulator.put_faults({"when": {}, "do": {"status": 429, "headers": {"retry-after": "86400"}}})
    summary = send(emulator, folder)
    assert (summary.exit_code, summary.stopped_by) == (5, "parked")
    assert "wait until" in summary.message
    emulator.put_faults()
    assert send(emulator, folder).succeeded == 6


def test_many_failures_stop_the_run_before_it_has_bought_more(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / "in" / f"{number:02}.txt").write_text(f"Say something about {number}.")
    emulator.put_faults({"when": {}, "do": {"status": 400}})
    summary = send(emulator, tmp_path)
    assert (summary.exit_code, summary.stopped_by) == (6, "max_failures")
    assert len(emulator.journal()) <= 20 + 4
    assert summary.pending >= 36
