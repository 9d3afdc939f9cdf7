"""Answers as columns: a job asks for named fields, each becomes a `reply.<name>` column."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiobatch.errors import ConfigError, StorageError
from audiobatch.execution.job import Job
from audiobatch.ledger.writer import LedgerWriter
from audiobatch.model import Reply, Request
from audiobatch.planning.plan import Retry
from audiobatch.transports.chat import ChatTransport
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import present
from tests.running import audiobatch, azure, rows_of, run_job, write_wav

FIELDS = [
    {"name": "sentiment", "enum": ["positive", "neutral", "negative"]},
    {"name": "topic", "description": "what it is about"},
    {"name": "words", "type": "integer"},
    {"name": "place", "required": False},
]


@pytest.fixture
def fields(tmp_path: Path) -> str:
    path = tmp_path / "fields.json"
    path.write_text(json.dumps({"fields": FIELDS}))
    return str(path)


@pytest.fixture
def job(tmp_path: Path, emulator: EmulatorProcess, fields: str) -> dict[str, Any]:
    for name in ("a.wav", "b.wav"):
        write_wav(tmp_path / "in" / name)
    return {
        "inputs": [str(tmp_path / "in")],
        "output": str(tmp_path / "out"),
        "modalities": "text",
        "fields": fields,
        "prompt": "What is this call about?",
        **azure(emulator),
    }


@pytest.fixture
def first_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the service answers to the first calls, instead of its own words."""
    said: list[str] = []
    send = ChatTransport.send

    async def sent(self: ChatTransport, request: Request, *arguments: Any, **named: Any) -> Reply:
        reply = await send(self, request, *arguments, **named)
        return replace(reply, text=said.pop(0)) if said else reply

    monkeypatch.setattr(ChatTransport, "send", sent)
    return said


def test_each_field_is_a_column(job: dict[str, Any], emulator: EmulatorProcess) -> None:
    rows = rows_of(run_job(**job))
    assert len(emulator.settled_journal(2)) == 2
    for row in rows:
        assert row["reply.sentiment"] in ("positive", "neutral", "negative")
        assert row["reply.topic"]
        assert row["reply.words"].isdigit()
        assert row["prompt"] == "What is this call about?", "the prompt is the user's own"
    assert run_job(**job).sent == 0


def test_an_answer_that_does_not_fit_is_put_right_by_one_more_call_of_the_same_turn(
    job: dict[str, Any], emulator: EmulatorProcess, first_answers: list[str]
) -> None:
    first_answers.append('{"sentiment": "fine", "topic": "x", "words": 1}')
    one = {**job, "inputs": [job["inputs"][0] + "/a.wav"]}
    summary = run_job(**one)
    (row,) = rows_of(summary)
    assert (row["status"], row["attempts"]) == ("succeeded", "2")
    assert row["reply.sentiment"] in ("positive", "neutral", "negative")
    first, second = emulator.settled_journal(2)
    assert float(row["cost_usd"]) == pytest.approx(float(present(summary.cost_usd)))
    for name in ("input_text_tokens", "output_text_tokens"):
        assert int(row[name]) == first[name] + second[name]
    assert second["input_text_tokens"] > first["input_text_tokens"], "the repair shows what was said"
    assert run_job(**one).sent == 0


def test_an_answer_that_is_wrong_twice_is_a_failed_row_with_the_reason_and_the_answer(
    job: dict[str, Any], emulator: EmulatorProcess, first_answers: list[str], tmp_path: Path
) -> None:
    first_answers += ["I would rather not.", "Sorry?"]
    summary = run_job(**{**job, "inputs": [job["inputs"][0] + "/a.wav"]})
    (row,) = rows_of(summary)
    assert (row["status"], row["error_type"], row["attempts"]) == ("failed", "bad_reply", "2")
    assert float(row["cost_usd"]) == pytest.approx(float(present(summary.cost_usd))), (
        "both answers were paid for"
    )
    assert "there is no JSON object in it" in row["error_message"]
    assert [path.read_text() for path in (tmp_path / "out" / "replies").iterdir()] == ["Sorry?"]
    assert len(emulator.settled_journal(2)) == 2


def stop_before_the_repair(running: Job) -> None:
    """As if somebody pressed Ctrl-C while the repair waits for a service in trouble."""
    from audiobatch.stop import StopReason

    record = running.context.ledger.writer.record_part

    async def record_then_stop(*arguments: Any) -> None:
        await record(*arguments)
        running.stop.ask(StopReason.SIGINT)

    running.context.ledger.writer.record_part = record_then_stop  # type: ignore[assignment, method-assign]  # a stand-in


def test_a_run_that_stops_before_the_repair_leaves_the_answer_to_the_next_one(
    job: dict[str, Any], emulator: EmulatorProcess, first_answers: list[str]
) -> None:
    first_answers.append("I would rather not.")
    one = {**job, "inputs": [job["inputs"][0] + "/a.wav"]}
    stopped = run_job(**one, on_open=stop_before_the_repair)
    assert (stopped.exit_code, stopped.pending, len(emulator.settled_journal(1))) == (130, 1, 1)
    summary = run_job(**one)
    (row,) = rows_of(summary)
    first, second = emulator.settled_journal(2)
    assert (row["status"], row["attempts"]) == ("succeeded", "2")
    assert second["input_text_tokens"] > first["input_text_tokens"], "the repair shows what was said"
    assert int(row["input_text_tokens"]) == first["input_text_tokens"] + second["input_text_tokens"]
    assert float(row["cost_usd"]) == pytest.approx(
        float(present(stopped.cost_usd) + present(summary.cost_usd))
    )


def test_an_answer_that_cannot_be_recorded_is_brought_home_and_put_right(
    job: dict[str, Any], emulator: EmulatorProcess, first_answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_self: object, *_arguments: object) -> None:
        raise StorageError("no space left")

    first_answers.append("I would rather not.")
    one = {**job, "inputs": [job["inputs"][0] + "/a.wav"]}
    with monkeypatch.context() as broken:
        broken.setattr(LedgerWriter, "record_part", full)
        assert run_job(**one).exit_code == 2
    (row,) = rows_of(run_job(**one))
    assert (row["status"], row["attempts"], len(emulator.settled_journal(2))) == ("succeeded", "2", 2)


def test_a_retry_after_two_wrong_answers_asks_anew(
    job: dict[str, Any], emulator: EmulatorProcess, first_answers: list[str]
) -> None:
    first_answers += ["I would rather not.", "Sorry?"]
    one = {**job, "inputs": [job["inputs"][0] + "/a.wav"]}
    assert run_job(**one).failed == 1
    (row,) = rows_of(run_job(**one, retry=Retry()))
    first, _, third = emulator.settled_journal(3)
    assert (row["status"], third["input_text_tokens"]) == ("succeeded", first["input_text_tokens"])


def test_fields_are_asked_of_the_last_turn_and_earlier_turns_are_not_bought_again(
    job: dict[str, Any], emulator: EmulatorProcess
) -> None:
    plain = {**job, "fields": (), "modalities": "text,audio"}
    run_job(**plain)
    rows = rows_of(
        run_job(
            **{**plain, "prompt": (job["prompt"], "In fields, please."), "fields": job["fields"]}, keep=True
        )
    )
    assert len(emulator.settled_journal(4)) == 4
    assert [bool(row["reply.topic"]) for row in rows] == [False, True, False, True]


def test_a_job_without_fields_has_the_fingerprints_it_always_had(job: dict[str, Any], tmp_path: Path) -> None:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import Source, SourceKind
    from audiobatch.planning.items import build_item, job_settings

    source = Source(item_id="a", kind=SourceKind.PROMPT, position=0, root="", path="", text="Hi.", sha256="0")
    spec = JobSpec(prompt=("", "And?"))
    with_fields = JobSpec(prompt=("", "And?"), fields=job["fields"])
    assert "fields" not in job_settings(spec)
    first, last = build_item(source, spec).turns
    same, other = build_item(source, with_fields).turns
    assert first.fingerprint == same.fingerprint
    assert last.fingerprint != other.fingerprint


def test_a_spoken_answer_cannot_hold_fields_and_the_message_says_what_to_do(
    job: dict[str, Any], tmp_path: Path
) -> None:
    done = audiobatch(
        "run", tmp_path / "in", "--provider", "local", "--fields", job["fields"], "--no-prefect"
    )
    assert done.returncode == 2
    assert "modalities text" in done.stderr


def test_a_wrong_fields_file_is_named(tmp_path: Path, job: dict[str, Any]) -> None:
    (tmp_path / "bad.json").write_text('[{"name": "a b"}]')
    with pytest.raises(ConfigError, match=r"bad\.json: field 1, name"):
        run_job(**{**job, "fields": str(tmp_path / "bad.json")})


def test_a_job_file_names_its_fields_beside_itself_or_holds_them(tmp_path: Path, fields: str) -> None:
    from audiobatch.config.settings import resolve

    (tmp_path / "job.toml").write_text('modalities = "text"\nfields = "fields.json"\n')
    (tmp_path / "inline.toml").write_text('modalities = "text"\n[[fields]]\nname = "topic"\n')
    assert [field.name for field in resolve({}, job_file=tmp_path / "job.toml").spec.fields] == [
        "sentiment",
        "topic",
        "words",
        "place",
    ]
    assert [field.name for field in resolve({}, job_file=tmp_path / "inline.toml").spec.fields] == ["topic"]
