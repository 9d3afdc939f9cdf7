"""The write path under every fault of the machine: what is paid for is kept, once; messages say what to do."""

import asyncio
import contextlib
import errno
import itertools
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from audiobatch.config.jobspec import JobSpec
from audiobatch.execution import job as job_module
from audiobatch.execution.job import Job
from audiobatch.ledger import group_commit
from audiobatch.ledger.ledger import Ledger
from audiobatch.ledger.rows import Attempt
from audiobatch.ledger.writer import LedgerWriter
from audiobatch.model import Status
from audiobatch.planning.plan import Retry
from audiobatch.storage import atomic_file
from audiobatch.storage.spool import Spool
from audiobatch.transports.chat import ChatTransport
from audiobatch_emulator.process import EmulatorProcess
from tests.crash import observing
from tests.narrowing import local
from tests.running import azure, read_manifest, run_job, write_wav

TEXTS = {f"p{n}": f"Please say the number {n}." for n in range(4)}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return table(tmp_path / "prompts.jsonl", TEXTS)


def table(path: Path, texts: Mapping[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in texts.items()))
    return path


def job(emulator: EmulatorProcess, prompts: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    given = {"inputs": (str(prompts),), "output": str(tmp_path / "out"), "max_concurrency": 2}
    return {**azure(emulator, **given), "max_failures": "100%", **changes}


def billed(emulator: EmulatorProcess, text: str | None = None) -> int:
    records = [call for call in emulator.settled_journal(0) if call["billed"]]
    if text is not None:
        records = [record for record in records if record["item_hash"] == observing.hash_of_prompt(text)]
    return len(records)


def all_there(tmp_path: Path) -> None:
    seen = observing.look(tmp_path / "out")
    assert seen.statuses == Counter(succeeded=len(TEXTS))
    assert seen.open_calls == 0
    assert all(observing.is_there(tmp_path / "out", result) for result in seen.results | seen.earlier)
    assert observing.temporary_files(tmp_path / "out") == 0
    assert not any((tmp_path / "state").rglob("*.reply"))


# A disk that is full, at every write.


class FullDisk:
    """From its nth write on, and until it is `mended`, the output's disk is full; other disks are not."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, root: Path, nth: int, error: int = errno.ENOSPC
    ) -> None:
        self.root, self.nth, self.error = str(root), nth, error
        self.writes = itertools.count(1)
        self.hit = self.mended = False
        original = atomic_file.NewFile.pour

        def pour(file: Any, data: Any) -> Any:
            if str(file.target).startswith(self.root) and not self.mended and next(self.writes) >= self.nth:
                self.hit = True
                with atomic_file.translating(str(file.target)):
                    raise OSError(self.error, os.strerror(self.error))
            return original(file, data)

        monkeypatch.setattr(atomic_file.NewFile, "pour", pour)


@pytest.mark.parametrize("nth", range(1, 13))
def test_a_disk_that_is_full_at_any_write_costs_no_paid_reply(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    settings = job(emulator, prompts, tmp_path)
    disk = FullDisk(monkeypatch, tmp_path / "out", nth)
    message, code = run_to_exit(settings)
    if disk.hit:
        assert code == 2
        assert "no space is left on the disk" in message
        assert "Free some space" in message
    disk.mended = True
    assert run_job(**settings).exit_code == 0
    all_there(tmp_path)
    assert billed(emulator) == len(TEXTS)
    assert disk.hit


def run_to_exit(settings: Any) -> tuple[str, int]:
    """Message and exit code, as the command line gives them."""
    from audiobatch.errors import AudioBatchError
    from audiobatch_flows.cli.main import _explain

    try:
        summary = run_job(**settings)
    except AudioBatchError as failed:
        return failed.message, _explain(failed)
    return summary.message, summary.exit_code


@pytest.mark.parametrize("nth", range(1, 18, 2))
def test_a_ledger_that_cannot_be_written_at_any_commit_costs_no_paid_reply(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    settings = job(emulator, prompts, tmp_path)
    commits, original = itertools.count(1), group_commit.GroupCommit._apply
    mended = threading.Event()

    def apply(writer: Any, connection: Any, batch: Any) -> Any:
        changed = original(writer, connection, batch)
        if not mended.is_set() and next(commits) >= nth:
            raise OperationalError("COMMIT", {}, Exception("database or disk is full"))
        return changed

    monkeypatch.setattr(group_commit.GroupCommit, "_apply", apply)
    message, code = run_to_exit(settings)
    assert code == (2 if "full" in message else 0)
    mended.set()
    assert run_job(**settings).exit_code == 0
    all_there(tmp_path)
    assert billed(emulator) == len(TEXTS)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("free_kb", [300, 900, 1500])
def test_a_small_disk_that_fills_up_for_real(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_kb: int
) -> None:
    import subprocess

    (tmp_path / "out").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={free_kb}k", "tmpfs", tmp_path / "out"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        settings = job(emulator, prompts, tmp_path)
        refused, code = run_to_exit(settings)
        assert (code, billed(emulator)) == (2, 0), "the plan's estimate already says that it is too small"
        assert "Free some space" in refused
        monkeypatch.setattr(job_module, "check_free_space", lambda *_, **__: None)
        message, code = run_to_exit(settings)
        assert code == 2
        assert "no space is left" in message or "full" in message
        paid = billed(emulator)
        subprocess.run(["mount", "-o", "remount,size=100m", tmp_path / "out"], check=True)
        assert run_job(**settings).exit_code == 0
        all_there(tmp_path)
        assert billed(emulator) == len(TEXTS)
        assert paid <= len(TEXTS)
    finally:
        subprocess.run(["umount", tmp_path / "out"], check=False)


def test_too_little_room_for_the_plan_is_said_before_anything_is_sent(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiobatch.storage.local.LocalStorage.free_bytes", lambda _: 5_000_000)
    message, code = run_to_exit(job(emulator, prompts, tmp_path))
    assert (code, emulator.journal()) == (2, [])
    assert "has 5.0 MB free" in message
    assert "--limit" in message


def test_the_spool_has_room_set_aside_while_a_run_sends_and_gives_it_back(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path
) -> None:
    emulator.put_faults({"do": {"latency_s": 0.3}})
    sizes = []

    def watch(job: Job) -> None:
        reserve = Spool(local(job.output)).folder / "reserve"

        def measure() -> None:
            time.sleep(0.6)
            sizes.append(reserve.stat().st_size)

        threading.Thread(target=measure).start()

    assert run_job(on_open=watch, **job(emulator, prompts, tmp_path)).exit_code == 0
    assert sizes[0] > 1_000_000
    assert not any(path.is_file() for path in (tmp_path / "state").rglob("spool/**/*"))


# A folder that turns read-only, or goes away, in mid-run.


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_turns_read_only_in_mid_run(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    settings = job(emulator, prompts, tmp_path)
    disk = FullDisk(monkeypatch, tmp_path / "out", 6, error)
    message, code = run_to_exit(settings)
    assert (code, disk.hit) == (2, True)
    assert "run the same command again" in message
    paid = billed(emulator)
    assert 0 < paid < len(TEXTS) + 1
    disk.mended = True
    assert run_job(**settings).exit_code == 0
    all_there(tmp_path)
    assert billed(emulator) == len(TEXTS)


def test_an_output_folder_that_is_deleted_in_mid_run_costs_no_paid_reply(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path
) -> None:
    emulator.put_faults({"do": {"latency_s": 0.5}})
    settings = job(emulator, prompts, tmp_path, max_concurrency=4)

    def watch(_: object) -> None:
        def delete() -> None:
            while len(emulator.journal()) < 3:
                time.sleep(0.02)
            shutil.rmtree(tmp_path / "out")

        threading.Thread(target=delete).start()

    message, code = run_to_exit({**settings, "on_open": watch})
    assert code == 2
    assert "output folder" in message or "not there" in message
    assert run_job(**settings).exit_code == 0
    all_there(tmp_path)
    # The first call goes alone; its result was recorded, and deleted by the user with all else.
    assert billed(emulator) == len(TEXTS) + 1


# Inputs that change while the run works.


def test_an_input_that_is_rewritten_or_deleted_in_mid_run(emulator: EmulatorProcess, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    names = ("a", "b", "c", "d", "rewritten", "to-be-gone", "z")  # those in front are waited for
    for n, name in enumerate(names):
        write_wav(folder / f"{name}.wav", pitch_hz=200 + 50 * n)
    emulator.put_faults({"do": {"latency_s": 0.4}})

    def watch(_: object) -> None:
        def change() -> None:
            while not emulator.journal():
                time.sleep(0.01)
            write_wav(folder / "rewritten.wav", seconds=1.0, pitch_hz=640)
            (folder / "to-be-gone.wav").unlink()

        threading.Thread(target=change).start()

    summary = run_job(on_open=watch, **job(emulator, folder, tmp_path, max_concurrency=1))
    rows = {row["item_id"]: row for row in read_manifest(local(summary.manifest))}
    assert summary.exit_code == 3
    assert [row["status"] for row in rows.values()] == [*["succeeded"] * 5, "failed", "succeeded"]
    assert (rows["to-be-gone.wav"]["error_type"], rows["to-be-gone.wav"]["error_message"]) == (
        "input",
        "the file is gone: it was moved or deleted after it was found",
    )
    import hashlib

    now = hashlib.sha256((folder / "rewritten.wav").read_bytes()).hexdigest()
    assert rows["rewritten.wav"]["input_sha256"] == now
    emulator.put_faults()
    write_wav(folder / "to-be-gone.wav")
    assert run_job(**job(emulator, folder, tmp_path)).sent == 1


# Results that are made again.


def test_a_redo_that_meets_an_outage_leaves_the_earlier_results(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path
) -> None:
    settings = job(emulator, prompts, tmp_path)
    run_job(**settings)
    before = observing.look(tmp_path / "out").results
    emulator.put_faults({"do": {"status": 401}})
    assert run_job(**settings, voice="ash", redo=True).exit_code == 4
    seen = observing.look(tmp_path / "out")
    assert (seen.results, seen.earlier) == (before, set())
    emulator.put_faults()
    assert run_job(**settings, voice="ash", redo=True).succeeded == len(TEXTS)
    seen = observing.look(tmp_path / "out")
    assert seen.earlier == before
    all_there(tmp_path)


def test_a_redo_that_is_refused_for_good_sets_the_earlier_result_aside(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path
) -> None:
    settings = job(emulator, prompts, tmp_path)
    run_job(**settings)
    before = observing.look(tmp_path / "out").results
    emulator.put_faults({"when": {"text": TEXTS["p1"]}, "do": {"status": 400}})
    assert run_job(**settings, voice="ash", redo=True).failed == 1
    seen = observing.look(tmp_path / "out")
    assert seen.statuses == Counter(succeeded=3, failed=1)
    assert seen.earlier == before
    assert all(observing.is_there(tmp_path / "out", result) for result in seen.results | seen.earlier)
    assert not (tmp_path / "out/audio/p1.wav").exists()


def test_a_redo_on_a_full_disk_loses_neither_the_old_nor_the_new(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(emulator, prompts, tmp_path)
    run_job(**settings)
    before = observing.look(tmp_path / "out").results
    for nth in (4, 5, 6, 7, 8):
        disk = FullDisk(monkeypatch, tmp_path / "out", nth)
        run_to_exit({**settings, "voice": "ash", "redo": True})
        seen = observing.look(tmp_path / "out")
        assert {recorded for recorded in before if recorded in seen.results | seen.earlier} == before
        assert all(observing.is_there(tmp_path / "out", result) for result in seen.results | seen.earlier)
        disk.mended = True
    assert run_job(**settings, voice="ash", redo=True).exit_code == 0
    assert observing.look(tmp_path / "out").earlier == before
    all_there(tmp_path)
    assert billed(emulator) == 2 * len(TEXTS)


# Replies that were paid for and are no use.


@contextlib.contextmanager
def no_room_for_bad_replies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    original = atomic_file.NewFile.pour

    def pour(file: Any, data: Any) -> Any:
        if "/out/replies/" in str(file.target):
            raise atomic_file.storage_error(OSError(errno.ENOSPC, "full"), str(file.target))
        return original(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file.NewFile, "pour", pour)
        yield


def test_a_bad_reply_is_final_and_its_body_kept_though_the_disk_was_full(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(emulator, prompts, tmp_path)
    emulator.put_faults({"when": {"text": TEXTS["p2"]}, "do": {"corrupt": "base64"}})
    with no_room_for_bad_replies(monkeypatch):
        assert run_job(**settings).exit_code == 2
    again = run_job(**settings)
    assert billed(emulator, TEXTS["p2"]) == 1
    row = next(row for row in read_manifest(local(again.manifest)) if row["item_id"] == "p2")
    assert (row["status"], row["error_type"]) == ("failed", "bad_reply")
    assert (tmp_path / "out/replies/p2.json").stat().st_size > 1000
    assert run_job(**settings, retry=Retry()).failed == 1
    assert billed(emulator, TEXTS["p2"]) == 2


def test_a_bad_reply_that_another_machine_kept_takes_no_later_success_s_place(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(emulator, prompts, tmp_path)
    emulator.put_faults({"when": {"text": TEXTS["p2"]}, "do": {"corrupt": "base64"}})
    with no_room_for_bad_replies(monkeypatch):
        assert run_job(**settings).exit_code == 2
    emulator.put_faults()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
        assert run_job(**settings).exit_code == 0
    results = observing.look(tmp_path / "out").results
    again = run_job(**settings)
    assert (again.exit_code, again.sent) == (0, 0)
    assert not (tmp_path / "out/replies/p2.json").exists()
    seen = observing.look(tmp_path / "out")
    assert (seen.results, seen.earlier) == (results, set())
    all_there(tmp_path)


def test_a_bad_reply_to_a_redo_takes_the_earlier_result_s_place_when_it_comes_home(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(emulator, prompts, tmp_path)
    run_job(**settings)
    before = observing.look(tmp_path / "out").results
    emulator.put_faults({"when": {"text": TEXTS["p2"]}, "do": {"corrupt": "base64"}})
    redo = {**settings, "voice": "ash", "redo": True}
    with no_room_for_bad_replies(monkeypatch):
        assert run_job(**redo).exit_code == 2
    assert run_job(**redo).exit_code in {0, 3}
    seen = observing.look(tmp_path / "out")
    assert seen.statuses == Counter(succeeded=3, failed=1)
    assert seen.earlier == before
    assert all(observing.is_there(tmp_path / "out", result) for result in seen.results | seen.earlier)


@pytest.mark.parametrize("then", [{"status": 400}, {"corrupt": "html"}, {"corrupt": "text_only"}])
def test_a_reply_in_text_alone_is_kept_when_asking_again_brings_no_sound(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, then: dict[str, Any]
) -> None:
    text = TEXTS["p3"]
    emulator.put_faults(
        {"when": {"text": text, "attempt_below": 1}, "do": {"corrupt": "text_only"}},
        {"when": {"text": text}, "do": then},
    )
    summary = run_job(**job(emulator, prompts, tmp_path, retry_text_only=True))
    row = next(row for row in read_manifest(local(summary.manifest)) if row["item_id"] == "p3")
    assert (row["status"], row["checks"], row["audio_file"]) == ("succeeded", "text_only", "")
    assert (summary.exit_code, row["attempts"]) == (0, "2" if then == {"corrupt": "text_only"} else "1")


def test_what_every_call_cost_stands_in_the_ledger_also_where_it_was_for_nothing(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path
) -> None:
    emulator.put_faults({"when": {"attempt_below": 1}, "do": {"corrupt": "text_only"}})
    summary = run_job(**job(emulator, prompts, tmp_path, retry_text_only=True))
    from contextlib import closing

    with closing(Ledger.open(tmp_path / "out/ledger.db")) as ledger:
        assert ledger.reader.spent_usd() == summary.cost_usd
        assert sum(1 for _ in ledger.reader.all_outcomes()) == len(TEXTS)
    assert billed(emulator) == 2 * len(TEXTS)


# Stopping.


def test_a_run_that_is_cancelled_as_a_task_records_what_has_arrived(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiobatch.storage import artifacts

    spec = JobSpec(**job(emulator, prompts, tmp_path, max_concurrency=4))
    writing = threading.Event()
    original = artifacts.make

    def slow(*arguments: Any) -> Any:
        writing.set()
        time.sleep(0.5)
        return original(*arguments)

    monkeypatch.setattr(artifacts, "make", slow)

    async def cancelled() -> None:
        running = asyncio.create_task(job_module.run(spec))
        await asyncio.to_thread(writing.wait, 20)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())
    recorded = observing.look(tmp_path / "out").statuses["succeeded"]
    assert recorded >= 1
    assert run_job(**job(emulator, prompts, tmp_path)).skipped_done == recorded
    all_there(tmp_path)


def test_a_stop_while_the_intent_is_written_sends_nothing(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiobatch.stop import StopReason

    jobs: list[Job] = []
    original = LedgerWriter.record_intent

    async def stopped(writer: LedgerWriter, attempt: Attempt) -> None:
        await original(writer, attempt)
        jobs[0].stop.ask(StopReason.SIGINT)

    monkeypatch.setattr(LedgerWriter, "record_intent", stopped)
    monkeypatch.setattr(ChatTransport, "send", None)
    summary = run_job(on_open=jobs.append, **job(emulator, prompts, tmp_path))
    assert (summary.exit_code, summary.sent, summary.pending) == (130, 0, len(TEXTS))
    assert observing.look(tmp_path / "out").open_calls == 0


# Calls with an unknown end.


@pytest.mark.parametrize(("on_unknown", "calls"), [("retry", 3), ("skip", 1)])
def test_unknown_calls_are_made_again_at_most_twice_or_never_also_in_a_redo(
    emulator: EmulatorProcess, prompts: Path, tmp_path: Path, on_unknown: str, calls: int
) -> None:
    settings = job(emulator, prompts, tmp_path, on_unknown=on_unknown)
    run_job(**settings)
    emulator.reset()
    emulator.put_faults({"when": {"text": TEXTS["p1"]}, "do": {"reset": "in"}})
    for _ in range(3):
        summary = run_job(**settings, voice="ash", redo=True)
    assert billed(emulator, TEXTS["p1"]) == calls
    assert billed(emulator) == calls + len(TEXTS) - 1
    assert Path(local(summary.output)).exists()
    assert observing.look(tmp_path / "out").statuses == Counter(succeeded=4)
    emulator.put_faults()
    unknown = Retry(statuses=frozenset({Status.UNKNOWN}))
    assert run_job(**settings, voice="ash", redo=True, retry=unknown).succeeded == 1
