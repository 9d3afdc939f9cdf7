"""Replies that are paid for and cannot be worked on here: kept, finished by the next run, not bought again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from audiobatch.calls import transcription
from audiobatch.calls.stats import RunSummary
from audiobatch.errors import BadReply, StorageError
from audiobatch.execution import finishing
from audiobatch.ledger.writer import LedgerWriter
from audiobatch.model import Status
from audiobatch.planning.plan import Retry
from audiobatch.storage import artifacts
from audiobatch.storage.spool import Spool
from audiobatch.transports import chat, reply_content
from audiobatch.transports import transcriptions as transcriptions_transport
from audiobatch_emulator.process import EmulatorProcess
from tests.hostile_server import Call, HostileServer, good, hostile_server, whole
from tests.narrowing import local
from tests.running import audiobatch, azure, rows_of, run_job, write_wav
from tests.stories.test_long_recordings import talk

WAYS = {
    "measured": ((artifacts, "measure"), {}),
    "read": ((chat, "reply_of"), {}),
    "encoded from a stream": ((reply_content, "encode_reply"), {"stream": True, "format": "mp3"}),
    "encoded from a session": ((reply_content, "encode_reply"), {"transport": "realtime", "format": "mp3"}),
}
BUG = TypeError("no such argument")
CASES = {way: (*how, BUG, 1) for way, how in WAYS.items()} | {
    "a full disk": (*WAYS["measured"], OSError(28, "No space left on device"), 2),
    "no memory": (*WAYS["measured"], MemoryError(), 1),
}


@pytest.fixture
def job(emulator: EmulatorProcess, tmp_path: Path) -> dict[str, Any]:
    table = tmp_path / "p.csv"
    table.write_text("id,prompt\n" + "".join(f"p{n},Say number {n}.\n" for n in range(12)))
    return {"inputs": [str(table)], "output": str(tmp_path / "out"), **azure(emulator, max_concurrency=1)}


def breaks(monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], failure: Exception) -> None:
    """What this machine does with a reply fails: no fault of the service's brings it about."""
    owner, name = place
    real = getattr(owner, name)

    def broken(*arguments: Any, **named: Any) -> Any:
        if name == "encode_reply" and arguments[1] == "wav":
            return real(*arguments, **named)
        raise failure

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize(("place", "settings", "failure", "exit_code"), CASES.values(), ids=CASES)
def test_the_run_stops_after_the_first_and_the_next_finishes_it_for_nothing(
    place: tuple[ModuleType, str],
    settings: dict[str, Any],
    failure: MemoryError | OSError | TypeError,
    exit_code: int,
    job: dict[str, Any],
    emulator: EmulatorProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = {**job, **settings}
    with monkeypatch.context() as patched:
        breaks(patched, place, failure)
        first = run_job(**job)
    (call,) = emulator.settled_journal(1)
    assert (first.exit_code, first.sent, first.succeeded, first.pending) == (exit_code, 1, 0, 12)
    assert "p0" in first.message
    row = rows_of(first)[0]
    assert (row["status"], row["error_type"]) == ("pending", "unfinished")
    assert json.loads(local(first.output / "replies" / "p0.json").read_bytes())["choices"]

    second = run_job(**{**job, "limit": 1})
    assert (second.exit_code, second.finished, second.sent) == (0, 1, 1)
    assert second.as_json()["finished"] == 1
    row = rows_of(second)[0]
    assert (row["status"], row["error_type"]) == ("succeeded", "")
    assert row["request_id"] or settings
    assert row["transcript"]
    assert local(second.output / row["audio_file"]).stat().st_size > 1000
    assert int(row["output_audio_tokens"]) == call["output_audio_tokens"]
    assert float(row["cost_usd"]) > 0
    assert not list(local(second.output / "replies").glob("*"))
    assert [record["item_hash"] for record in emulator.settled_journal(2)].count(call["item_hash"]) == 1
    checked = audiobatch("verify", str(second.output))
    assert checked.returncode == 0, checked.stdout


def test_neither_run_nor_retry_buys_what_still_cannot_be_finished(
    job: dict[str, Any], emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, (artifacts, "measure"), BUG)
    run_job(**job)
    again = run_job(**job)
    assert (again.exit_code, again.sent, again.finished, again.pending) == (1, 0, 0, 12)
    assert "replies/p0.json" in again.message
    for statuses in ({Status.FAILED, Status.UNKNOWN}, set(Status)):
        retried = run_job(**job, retry=Retry(statuses=frozenset(statuses)))
        assert (retried.exit_code, retried.sent) == (1, 0)
    assert len(emulator.settled_journal(1)) == 1
    monkeypatch.undo()
    whole = run_job(**job)
    assert (whole.exit_code, whole.finished, whole.sent, whole.succeeded) == (0, 1, 11, 11)
    assert len(emulator.settled_journal(12)) == 12


def test_an_earlier_result_is_a_version_when_its_retake_is_finished(
    job: dict[str, Any], emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {**job, "limit": 1}
    run_job(**job)
    with monkeypatch.context() as patched:
        breaks(patched, (artifacts, "measure"), BUG)
        run_job(**{**job, "voice": "ash"}, redo=True)
    done = run_job(**{**job, "voice": "ash", "limit": None})
    row = rows_of(done)[0]
    assert (done.finished, row["status"], row["voice"], row["version"]) == (1, "succeeded", "ash", "2")
    assert local(done.output / "versions" / "v1" / "audio" / "p0.wav").exists()


def test_each_part_of_a_long_recording_is_finished_by_itself(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(tmp_path / "in" / "talk.wav", 90)
    job = {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), **azure(emulator, max_part=0.5)}
    with monkeypatch.context() as patched:
        breaks(patched, (artifacts, "measure"), BUG)
        first = run_job(**job)
    paid = len(emulator.settled_journal(1))
    assert (first.exit_code, rows_of(first)[0]["error_type"]) == (1, "unfinished")
    done = run_job(**job)
    assert (done.exit_code, done.finished, done.succeeded) == (0, paid, 1)
    assert len(emulator.settled_journal(4)) == 4, "no part is paid for twice"
    assert not [path for path in local(done.output / "parts").rglob("*") if path.is_file()]


def test_a_part_that_proves_to_be_unusable_fails_its_turn_and_no_later_run(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(tmp_path / "in" / "talk.wav", 90)
    job = {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), **azure(emulator, max_part=0.5)}
    with monkeypatch.context() as patched:
        breaks(patched, (artifacts, "measure"), BUG)
        assert rows_of(run_job(**job))[0]["error_type"] == "unfinished"
    paid = len(emulator.settled_journal(1))
    with monkeypatch.context() as patched:
        breaks(patched, (finishing, "make"), BadReply("its audio is not audio"))
        second = run_job(**job)
    row = rows_of(second)[0]
    assert (second.sent, row["status"], row["error_type"]) == (0, "failed", "bad_reply")
    assert "its audio is not audio" in row["error_message"]
    assert local(second.output / "replies" / "talk.wav.json").exists()
    again = run_job(**job, retry=Retry(statuses=frozenset({Status.FAILED})))
    assert (again.exit_code, again.succeeded) == (0, 1), again.message
    assert len(emulator.settled_journal(paid + 1)) > paid
    checked = audiobatch("verify", str(again.output))
    assert checked.returncode == 0, checked.stdout


def words_with_times(call: Call) -> Iterable[bytes]:
    if not call.is_transcription:
        return good(call)
    segments = [{"start": 0.2, "end": 0.9, "text": " Hello there."}]
    return [whole(json.dumps({"text": "Hello there.", "duration": 1.0, "segments": segments}).encode())]


@pytest.fixture
def words_server() -> Iterator[HostileServer]:
    with hostile_server(words_with_times) as server:
        yield server


@pytest.fixture
def words_job(words_server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    write_wav(tmp_path / "in" / "talk.wav", seconds=1)
    settings = {"provider": "openai", "modalities": "text", "transcribe_inputs": "whisper-1"}
    return {
        "inputs": [str(tmp_path / "in")],
        "output": str(tmp_path / "out"),
        "endpoint": words_server.url,
        **settings,
    }


def transcriptions(server: HostileServer) -> int:
    return sum(call.is_transcription for call in server.calls)


def has_words(summary: RunSummary) -> bool:
    (row,) = rows_of(summary)
    assert row["status"] == "succeeded"
    return row["input_transcript"] == "Hello there."


def subtitles(summary: RunSummary) -> str:
    (found,) = local(summary.output / "transcripts").glob("*.srt")
    return found.read_text()


@pytest.mark.parametrize(("failure", "exit_code"), [(BUG, 1), (OSError(28, "No space left on device"), 2)])
def test_words_that_are_paid_for_are_finished_by_the_next_run(
    failure: OSError | TypeError,
    exit_code: int,
    words_job: dict[str, Any],
    words_server: HostileServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        breaks(patched, (transcription, "Cue"), failure)
        first = run_job(**words_job)
    assert (first.exit_code, has_words(first), transcriptions(words_server)) == (exit_code, False, 1)
    assert "The next run finishes what is kept" in first.message
    second = run_job(**words_job)
    assert (second.exit_code, second.finished, has_words(second)) == (0, 1, True)
    assert transcriptions(words_server) == 1
    assert not [path for path in local(second.output / "parts").rglob("*") if path.is_file()]
    assert "00:00:00,200 --> 00:00:00,900" in subtitles(second)
    checked = audiobatch("verify", str(second.output))
    assert checked.returncode == 0, checked.stdout


def test_a_transcript_that_proves_to_be_unusable_is_requested_again(
    words_job: dict[str, Any], words_server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        breaks(patched, (transcription, "Cue"), BUG)
        run_job(**words_job)
    with monkeypatch.context() as patched:
        breaks(patched, (transcriptions_transport, "decode"), BadReply("no transcript in it"))
        second = run_job(**words_job)
    assert (has_words(second), transcriptions(words_server)) == (False, 1)
    third = run_job(**words_job)
    assert (third.exit_code, has_words(third), transcriptions(words_server)) == (0, True, 2)
    assert not [path for path in local(third.output / "parts").rglob("*") if path.is_file()]


def test_words_that_the_ledger_does_not_take_come_home_from_the_spool(
    words_job: dict[str, Any], words_server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_arguments: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(LedgerWriter, "record_part", full)
        first = run_job(**words_job)
    assert (first.exit_code, has_words(first), transcriptions(words_server)) == (2, False, 1)
    assert len(list(Spool(words_job["output"]).folder.glob("*.reply"))) == 1
    second = run_job(**words_job)
    assert (second.exit_code, has_words(second), transcriptions(words_server)) == (0, True, 1)
    assert "00:00:00,200 --> 00:00:00,900" in subtitles(second), "their times came home, too"


def test_a_purge_takes_what_is_kept_of_one_item_s_words(
    words_job: dict[str, Any], words_server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "in" / "other.wav", seconds=1)
    with monkeypatch.context() as patched:
        breaks(patched, (transcription, "Cue"), BUG)
        first = run_job(**words_job, max_concurrency=1)
    (kept,) = (path for path in local(first.output / "parts").rglob("*") if path.is_file())
    whose = next(name for name in ("talk.wav", "other.wav") if name in kept.name)
    purged = audiobatch("purge", str(first.output), "--item", whose, "--yes")
    assert purged.returncode == 0, purged.stderr
    assert not kept.exists()
    again = run_job(**words_job)
    assert again.exit_code == 0, again.message
