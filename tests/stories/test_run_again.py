"""What a second run sends: only what is new, changed, or failed for a reason that may pass."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from audiobatch.calls import item
from audiobatch.errors import ConfigError, InputError
from audiobatch.execution.job import Job
from audiobatch.model import Status
from audiobatch.planning.plan import Plan, Retry
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import local
from tests.running import ROOT, audiobatch, azure, rows_of, run_job, write_wav

PRICES = ROOT / "pipeline" / "audiobatch" / "config" / "prices.toml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(f"Say something about {name[0]}.")
    return tmp_path


@pytest.fixture
def job(folder: Path, emulator: EmulatorProcess) -> dict[str, Any]:
    return {"inputs": [str(folder / "in")], "output": str(folder / "out"), **azure(emulator)}


def test_a_second_run_sends_nothing(job: dict[str, Any], emulator: EmulatorProcess) -> None:
    first, second = run_job(**job), run_job(**job)
    assert (first.sent, first.succeeded) == (3, 3)
    assert (second.exit_code, second.sent, second.skipped_done, second.pending) == (0, 0, 3, 0)
    assert len(emulator.settled_journal(3)) == 3


def test_a_new_input_is_sent_alone_and_shifts_nothing(
    job: dict[str, Any], folder: Path, emulator: EmulatorProcess
) -> None:
    before = rows_of(run_job(**job))
    (folder / "in" / "aa.txt").write_text("Something new.")
    after = run_job(**job)
    assert after.sent == 1
    rows = {row["item_id"]: row for row in rows_of(after)}
    assert list(rows) == ["a.txt", "aa.txt", "b.txt", "c.txt"], "the manifest is in input order"
    for row in before:
        assert rows[row["item_id"]]["request_id"] == row["request_id"]


def test_a_row_with_an_id_that_is_taken_moves_no_result(emulator: EmulatorProcess, tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    job = {"inputs": [str(table)], "output": str(tmp_path / "out"), **azure(emulator)}
    table.write_text("id,prompt\na,Say one.\na-2,Say two.\n")
    assert run_job(**job).succeeded == 2
    table.write_text("id,prompt\na,Say one.\na,Say something new.\na-2,Say two.\n")
    again = run_job(**job)
    assert (again.sent, again.refused) == (0, 1)
    assert [(row["item_id"], row["status"], row["prompt"]) for row in rows_of(again)] == [
        ("a", "succeeded", "Say one."),
        ("a#again", "refused", "Say something new."),
        ("a-2", "succeeded", "Say two."),
    ]


def test_a_changed_input_is_sent_again_and_its_earlier_reply_kept(job: dict[str, Any], folder: Path) -> None:
    run_job(**job)
    (folder / "in" / "b.txt").write_text("Say something else.")
    again = run_job(**job)
    assert again.sent == 1
    row = next(row for row in rows_of(again) if row["item_id"] == "b.txt")
    assert (row["version"], row["prompt"]) == ("2", "Say something else.")
    assert (folder / "out" / "versions" / "v1" / "audio" / "b.txt.wav").exists()


def test_a_changed_voice_stops_the_run_and_says_what_changed(
    job: dict[str, Any], emulator: EmulatorProcess
) -> None:
    run_job(**job)
    with pytest.raises(ConfigError, match="voice: alloy → echo") as stopped:
        run_job(**job, voice="echo")
    assert "--redo" in stopped.value.message
    assert "--keep" in stopped.value.message
    assert len(emulator.settled_journal(3)) == 3


def test_a_setting_that_is_switched_off_is_among_what_changed(job: dict[str, Any]) -> None:
    run_job(**job, trim_reply_silence=True)
    with pytest.raises(ConfigError, match=r"trim-reply-silence: True → \(none\)"):
        run_job(**job)


def test_a_price_table_is_found_from_whatever_folder_the_next_command_runs_in(
    job: dict[str, Any],
    folder: Path,
    emulator: EmulatorProcess,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    (folder / "mine.toml").write_text(PRICES.read_text())
    monkeypatch.chdir(folder)
    emulator.put_faults({"when": {"nth": 1}, "do": {"corrupt": "no_audio"}})
    assert run_job(**job, prices="mine.toml").failed == 1
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    done = audiobatch("retry", folder / "out", "--no-prefect", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr


def test_a_ledger_that_is_lost_has_nothing_bought_again(
    job: dict[str, Any], folder: Path, emulator: EmulatorProcess
) -> None:
    run_job(**job)
    (folder / "out" / "ledger.db").rename(folder / "safe.db")
    for _ in range(2):  # the second time there is one, and it is empty
        with pytest.raises(
            ConfigError, match=r"\(ledger.db\) is gone; all would be bought again. Put it back"
        ):
            run_job(**job)
    (folder / "safe.db").replace(folder / "out" / "ledger.db")
    assert run_job(**job).sent == 0
    assert len(emulator.settled_journal(3)) == 3


@pytest.mark.parametrize("name", ["manifest.csv", "report.html", "audio/a.txt.wav", "transcripts/mine/x.txt"])
def test_an_output_that_holds_files_of_the_user_s_is_refused(
    job: dict[str, Any], folder: Path, emulator: EmulatorProcess, name: str
) -> None:
    mine = folder / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("my own")
    with pytest.raises(ConfigError, match=f"{name} is there and was not made by audiobatch"):
        run_job(**job)
    assert mine.read_text() == "my own"
    assert emulator.journal() == []
    mine.rename(folder / "out" / "notes.txt")  # what no result is called is left in peace
    assert run_job(**job).sent == 3


def test_redo_makes_them_again(job: dict[str, Any], emulator: EmulatorProcess) -> None:
    run_job(**job)
    again = run_job(**job, voice="echo", redo=True)
    assert (again.sent, again.succeeded) == (3, 3)
    assert {row["voice"] for row in rows_of(again)} == {"echo"}
    assert run_job(**job, voice="echo").sent == 0


def test_keep_leaves_them_for_good(job: dict[str, Any], folder: Path) -> None:
    run_job(**job)
    (folder / "in" / "d.txt").write_text("Say something about d.")
    kept = run_job(**job, voice="echo", keep=True)
    assert kept.sent == 1
    assert run_job(**job, voice="echo").sent == 0, "what was kept once is not asked about again"
    assert [row["voice"] for row in rows_of(kept)] == ["alloy", "alloy", "alloy", "echo"]


def test_another_deployment_or_endpoint_buys_nothing_again(
    job: dict[str, Any], emulator: EmulatorProcess
) -> None:
    run_job(**job)
    moved = {**job, "deployment": "gpt-audio", "api_version": "2025-01-01-preview"}
    assert run_job(**moved).sent == 0


def test_what_may_pass_is_sent_again_and_what_is_final_only_by_retry(
    job: dict[str, Any], emulator: EmulatorProcess
) -> None:
    emulator.put_faults(
        {"when": {"text": "about a"}, "do": {"status": 400}},
        {"when": {"text": "about b"}, "do": {"corrupt": "json"}},
    )
    first = run_job(**job)
    assert (first.exit_code, first.succeeded, first.failed) == (3, 1, 2)
    by_id = {row["item_id"]: row for row in rows_of(first)}
    assert (by_id["a.txt"]["error_type"], by_id["b.txt"]["error_type"]) == ("rejected", "bad_reply")

    emulator.put_faults()
    assert run_job(**job).sent == 0
    retried = run_job(**job, retry=Retry())
    assert (retried.sent, retried.succeeded) == (2, 2)
    assert run_job(**job).sent == 0


def test_limit_tries_a_few_first(job: dict[str, Any]) -> None:
    first = run_job(**job, limit=2)
    assert (first.sent, first.pending, first.exit_code) == (2, 1, 0)
    assert [row["status"] for row in rows_of(first)] == ["succeeded", "succeeded", "pending"]
    second = run_job(**job)
    assert (second.sent, second.pending, second.skipped_done) == (1, 0, 2)


def test_each_run_lists_what_it_did(job: dict[str, Any], folder: Path) -> None:
    first = run_job(**job, limit=1)
    second = run_job(**job)
    runs = folder / "out" / "runs"
    assert len((runs / f"{first.run_id}.csv").read_text().splitlines()) == 1 + 1
    assert len((runs / f"{second.run_id}.csv").read_text().splitlines()) == 1 + 2
    assert "2 to send, 1 done" in (runs / f"{second.run_id}.log").read_text()


def test_a_recording_that_changes_between_plan_and_call_is_sent_under_its_new_hash(
    tmp_path: Path, emulator: EmulatorProcess
) -> None:
    path = write_wav(tmp_path / "in" / "memo.wav", seconds=1)

    def rewrite(job: Job) -> None:
        prepare = job.prepare

        async def prepare_then_change() -> Plan:
            plan = await prepare()
            write_wav(path, seconds=2)
            return plan

        job.prepare = prepare_then_change  # type: ignore[method-assign]  # a stand-in

    summary = run_job(
        inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), on_open=rewrite, **azure(emulator)
    )
    (row,) = rows_of(summary)
    assert row["input_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert float(row["input_duration_s"]) == pytest.approx(2.0)
    assert run_job(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator)).sent == 0


def test_an_item_that_cannot_be_sent_after_a_failed_redo_keeps_its_versions(
    job: dict[str, Any], emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise InputError("it is gone")

    job |= {"limit": 1}
    failed = Retry(statuses=frozenset({Status.FAILED}))
    first = run_job(**job)
    path = rows_of(first)[0]["audio_file"]
    sound = local(first.output / path).read_bytes()
    emulator.put_faults({"do": {"corrupt": "json"}})
    assert rows_of(run_job(**job, voice="ash", redo=True))[0]["version"] == "2"
    emulator.put_faults()
    with monkeypatch.context() as patched:
        patched.setattr(item, "build_item", refuse)
        row = rows_of(run_job(**job, voice="ash", retry=failed))[0]
    assert (row["status"], row["error_message"]) == ("failed", "it is gone")
    assert (row["version"], row["attempts"]) == ("2", "1")
    assert rows_of(run_job(**job, voice="ash", retry=failed))[0]["version"] == "2"
    last = run_job(**job, voice="echo", redo=True)
    assert rows_of(last)[0]["version"] == "3"
    assert local(last.output / "versions" / "v1" / path).read_bytes() == sound
    assert local(last.output / "versions" / "v2" / path).exists()
