"""The commands that look after a folder: verify, retry, purge, and what each leaves alone."""

import json
import os
import shutil
import sqlite3
import wave
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from audiobatch.errors import AudioBatchError
from audiobatch.storage.partial_reply import Received
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.cli.main import cli
from tests.crash import observing
from tests.narrowing import present
from tests.running import azure, read_manifest, run_job, write_wav

TEXTS = {"p0": "Please say zero.", "p1": "Please say one.", "p2": "Please say two, canary-prompt."}


@pytest.fixture
def done(emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three results."""
    return make(emulator, tmp_path)


def make(emulator: EmulatorProcess, tmp_path: Path, **changes: Any) -> Path:
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in TEXTS.items()))
    given = azure(
        emulator, inputs=(str(table),), output=str(tmp_path / "out"), max_failures="100%", **changes
    )
    run_job(**given)
    return tmp_path / "out"


def command(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and words, as from the terminal."""
    ended = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(ended.exception, AudioBatchError):
        return 2, ended.exception.message
    if ended.exception is not None:
        raise ended.exception
    return ended.return_value, ended.output


def found(folder: Path, *flags: str) -> dict[tuple[str, str], bool]:
    code, text = command("verify", folder, "--json", *flags)
    seen = json.loads(text.splitlines()[-1])
    assert (code == 3) == bool(seen["wrong"])
    return {(finding["trouble"], finding["where"]): finding["repaired"] for finding in seen["findings"]}


# verify


def test_a_folder_as_the_run_left_it_is_well(done: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in done.rglob("*")
        if path.is_file() and "ledger" not in path.name
    }
    code, said = command("verify", done)
    assert (code, said) == (0, f"{done}: 3 outcomes and 6 files checked; nothing is wrong\n")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_gone_changed_left_over_or_stale_is_named(done: Path) -> None:
    (done / "audio/p0.wav").unlink()
    (done / "transcripts/p1.txt").write_text("shorter")
    sound = (done / "audio/p2.wav").read_bytes()
    (done / "audio/p2.wav").write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    (done / "audio/stray.wav").write_bytes(b"?")
    (done / "audio/.audiobatch-tmp-0123").write_bytes(b"?")
    text = (done / "manifest.csv").read_text(encoding="utf-8-sig").replace("succeeded", "failed", 1)
    (done / "manifest.csv").write_text(text, encoding="utf-8-sig")
    assert set(found(done)) == {
        ("missing", "audio/p0.wav"),
        ("changed", "transcripts/p1.txt"),
        ("changed", "audio/p2.wav"),
        ("left over", "audio/stray.wav"),
        ("temporary", "audio/.audiobatch-tmp-0123"),
        ("manifest", "manifest.csv"),
    }


def test_a_run_that_was_killed_before_it_wrote_a_manifest_lacks_none(done: Path) -> None:
    (done / "manifest.csv").unlink()
    with closing(sqlite3.connect(done / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE runs SET finished_at = NULL")
    assert found(done) == {}


def test_repair_mends_views_and_left_overs_and_says_what_it_cannot_mend(done: Path) -> None:
    (done / "audio/p0.wav").unlink()
    (done / "audio/stray.wav").write_bytes(b"kept all the same")
    (done / "audio/.audiobatch-tmp-0123").write_bytes(b"?")
    (done / "manifest.csv").unlink()
    assert found(done, "--repair") == {
        ("missing", "audio/p0.wav"): False,
        ("left over", "audio/stray.wav"): True,
        ("temporary", "audio/.audiobatch-tmp-0123"): True,
        ("manifest", "manifest.csv"): True,
    }
    assert set(found(done)) == {("missing", "audio/p0.wav")}
    assert (done / "versions/unrecorded/audio/stray.wav").read_bytes() == b"kept all the same"
    assert len(read_manifest(done / "manifest.csv")) == 3


def test_a_reviewers_marks_and_columns_are_no_difference(done: Path) -> None:
    text = (done / "manifest.csv").read_text(encoding="utf-8-sig")
    lines = text.splitlines()
    header = lines[0].split(",")
    rows = list(map(dict, read_manifest(done / "manifest.csv")))
    for row in rows:
        row["review"], row["my own"] = "ok", "nice"
    import csv

    with (done / "manifest.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [*header, "my own"])
        writer.writeheader()
        writer.writerows(rows)
    assert found(done) == {}


def test_earlier_versions_are_checked_too(emulator: EmulatorProcess, tmp_path: Path) -> None:
    folder = make(emulator, tmp_path)
    make(emulator, tmp_path, voice="ash", redo=True)
    assert found(folder) == {}
    (folder / "versions/v1/audio/p1.wav").unlink()
    assert set(found(folder)) == {("missing", "versions/v1/audio/p1.wav")}


def test_a_call_that_a_kill_left_open_is_named(done: Path) -> None:
    with closing(sqlite3.connect(done / "ledger.db")) as connection:
        connection.execute("UPDATE attempts SET state = 'open' WHERE item_id = 'p1'")
        connection.commit()
    assert set(found(done)) == {("open call", "p1 turn 1")}


def test_a_broken_database_is_named(done: Path) -> None:
    with closing(sqlite3.connect(done / "ledger.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'outcomes_by_run'"
        ).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with (done / "ledger.db").open("r+b") as file:
        file.seek((root - 1) * size + size // 2)
        file.write(b"\xff" * (size // 2))
    code, said = command("verify", done)
    assert code in (2, 3), said
    assert "ledger.db" in said


@pytest.mark.parametrize("name", ["verify", "purge", "retry"])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, name: str) -> None:
    code, said = command(name, tmp_path, *(["--repair"] if name == "verify" else []))
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "no output folder of audiobatch" in said


# retry


def test_retry_sends_what_failed_for_good_and_what_is_unknown_and_nothing_else(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.put_faults(
        {"when": {"text": TEXTS["p0"]}, "do": {"corrupt": "html"}},
        {"when": {"text": TEXTS["p1"]}, "do": {"reset": "in"}},
    )
    folder = make(emulator, tmp_path, on_unknown="skip")
    assert observing.look(folder).statuses == Counter(succeeded=1, failed=1, unknown=1)
    emulator.put_faults()
    before = len(emulator.journal())
    code, said = command(
        "retry", folder, "--status", "failed", "--error", "rejected", "--no-prefect", "--quiet"
    )
    assert (code, len(emulator.journal())) == (0, before), said
    code, said = command("retry", folder, "--status", "failed", "--no-prefect", "--json", "--quiet")
    assert (code, json.loads(said.splitlines()[-1])["sent"]) == (0, 1)
    code, said = command("retry", folder, "--no-prefect", "--json", "--quiet")
    assert (code, json.loads(said.splitlines()[-1])["sent"]) == (0, 1)
    assert observing.look(folder).statuses == Counter(succeeded=3)
    assert found(folder) == {}


def test_retry_goes_on_with_a_redo_whose_calls_have_an_unknown_end(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    folder = make(emulator, tmp_path)
    emulator.put_faults({"when": {"text": TEXTS["p1"]}, "do": {"reset": "in"}})
    make(emulator, tmp_path, voice="ash", redo=True)
    assert Counter(result.version for result in observing.look(folder).results) == Counter({2: 2, 1: 1})
    emulator.put_faults()
    calls = len(emulator.journal())
    make(emulator, tmp_path, voice="ash", redo=True)
    assert len(emulator.journal()) == calls
    code, said = command("retry", folder, "--no-prefect", "--json", "--quiet")
    assert (code, json.loads(said.splitlines()[-1])["sent"]) == (0, 1)
    assert Counter(result.version for result in observing.look(folder).results) == Counter({2: 3})


def test_retry_knows_the_error_types(done: Path) -> None:
    code, said = command("retry", done, "--error", "bad-reply")
    assert code == 2
    assert "bad_reply" in said


def test_retry_of_a_job_whose_inputs_came_on_standard_input(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    from types import SimpleNamespace

    emulator.put_faults({"when": {"text": TEXTS["p0"]}, "do": {"corrupt": "html"}})
    lines = "".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in TEXTS.items())
    with monkeypatch.context() as patch:
        stdin = SimpleNamespace(buffer=io.BytesIO(lines.encode()))
        patch.setattr("audiobatch.execution.job.sys", SimpleNamespace(stdin=stdin))
        run_job(**azure(emulator, inputs=("-",), output=str(tmp_path / "out"), max_failures="100%"))
    emulator.put_faults()
    code, said = command("retry", tmp_path / "out", "--no-prefect", "--json", "--quiet")
    assert (code, json.loads(said.splitlines()[-1])["succeeded"]) == (0, 1)


def test_settings_that_a_run_was_refused_for_are_not_the_folders(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    folder = make(emulator, tmp_path)
    with pytest.raises(AudioBatchError, match="settings changed"):
        make(emulator, tmp_path, voice="ash")
    assert json.loads((folder / "job.json").read_text())["spec"]["voice"] == "alloy"
    assert found(folder) == {}


# purge


def holding(folder: Path, words: bytes) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file() and words in path.read_bytes()]


def test_purge_leaves_no_sound_and_no_words_and_keeps_counts_and_costs(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    folder = make(emulator, tmp_path)
    make(emulator, tmp_path, voice="ash", redo=True)
    before = {row["item_id"]: row for row in read_manifest(folder / "manifest.csv")}
    assert holding(folder, b"canary-prompt")
    code, said = command("purge", folder, "--yes")
    assert (code, "3 items purged" in said) == (0, True)
    assert holding(folder, b"canary-prompt") == []
    assert holding(folder, before["p1"]["transcript"][:40].encode()) == []
    assert not any(
        (folder / name).exists() and any((folder / name).rglob("*.*")) for name in ("audio", "versions")
    )
    after = {row["item_id"]: row for row in read_manifest(folder / "manifest.csv")}
    for item_id, row in after.items():
        assert (row["prompt"], row["transcript"], row["audio_file"]) == ("", "", "")
        for kept in ("status", "cost_usd", "output_audio_tokens", "finished_at", "fingerprint", "attempts"):
            assert row[kept] == before[item_id][kept]
    assert found(folder) == {}
    calls = len(emulator.journal())
    make(emulator, tmp_path, voice="ash")
    assert len(emulator.journal()) == calls, "what was purged is not bought again"


def test_purge_of_one_item_leaves_the_others(done: Path) -> None:
    code, _ = command("purge", done, "--item", "p2", "--yes")
    assert code == 0
    assert holding(done, b"canary-prompt") == []
    rows = {row["item_id"]: row for row in read_manifest(done / "manifest.csv")}
    assert [bool(row["transcript"]) for row in rows.values()] == [True, True, False]
    with wave.open(str(done / "audio/p0.wav")) as sound:
        assert sound.getnframes()
    assert not (done / "audio/p2.wav").exists()
    lists = [read_manifest(path) for path in (done / "runs").glob("*.csv")]
    assert [bool(row["transcript"]) for row in lists[0]] == [True, True, False]


def test_purge_by_age_takes_only_what_is_old_enough(done: Path) -> None:
    assert "0 items purged" in command("purge", done, "--older-than", "1d", "--yes")[1]
    with closing(sqlite3.connect(done / "ledger.db")) as connection:
        connection.execute(
            "UPDATE outcomes SET finished_at = '2020-01-01T00:00:00.000+00:00' WHERE item_id = 'p1'"
        )
        connection.commit()
    assert "1 item purged" in command("purge", done, "--older-than", "30d", "--yes")[1]
    assert sorted(path.name for path in (done / "audio").iterdir()) == ["p0.wav", "p2.wav"]


def test_purge_takes_replies_that_wait_in_the_spool(done: Path, tmp_path: Path) -> None:
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.ledger.spool_replay import spool_reply
    from audiobatch.model import Status
    from audiobatch.storage.spool import Spool

    with closing(Ledger.open(done / "ledger.db")) as ledger:
        outcome = ledger.reader.outcome("p1", 1)
    assert present(outcome).status is Status.SUCCEEDED
    roles = {"audio": "audio/p1.wav"}
    spool_reply(Spool(done), present(outcome), None, [("audio/p1.wav", b"canary-sound")], roles)
    assert ("not brought home", "p1") in found(done)
    assert holding(tmp_path / "state", b"canary-sound")
    command("purge", done, "--yes")
    assert holding(tmp_path, b"canary-sound") == []


def leave_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come of each reply stays where it is, as after a kill."""

    def stay(copy: Any) -> None:
        copy._pour()
        copy._shut()

    monkeypatch.setattr(Received, "discard", stay)


def test_purge_takes_what_had_come_of_a_reply_when_its_run_was_killed(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        leave_copies(killed)
        folder = make(emulator, tmp_path, stream=True)
    copies = sorted(path.name for path in (folder / "replies").iterdir())
    assert copies == ["p0.bin.part", "p1.bin.part", "p2.bin.part"]
    code, said = command("purge", folder, "--item", "p1", "--yes")
    assert (code, "3 files" in said) == (0, True), said
    assert sorted(path.name for path in (folder / "replies").iterdir()) == ["p0.bin.part", "p2.bin.part"]


@pytest.mark.parametrize("name", ["talk.wav", "My Talk.wav"])
def test_purge_takes_what_had_come_of_the_replies_to_parts(
    name: str, emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (name, "x.wav"):
        write_wav(tmp_path / "in" / other, seconds=40, rate_hz=8000)
    with monkeypatch.context() as killed:
        leave_copies(killed)
        given = azure(emulator, inputs=(str(tmp_path / "in"),), output=str(tmp_path / "out"))
        assert run_job(**given, stream=True, max_part=0.3).succeeded == 2
    copies = {path.name for path in (tmp_path / "out/replies").iterdir()}
    assert len(copies) > 4
    assert command("purge", tmp_path / "out", "--item", name, "--yes")[0] == 0
    left = {path.name for path in (tmp_path / "out/replies").iterdir()}
    assert left == {copied for copied in copies if copied.startswith("x.wav#part")} != set()


def test_purge_asks_nobody_where_nobody_is(done: Path) -> None:
    code, said = command("purge", done)
    assert (code, "--yes" in said) == (2, True)
    assert (done / "audio/p0.wav").exists()


@pytest.mark.parametrize(
    ("flags", "words"), [(("--item", "nobody"), "no such item"), (("--older-than", "30"), "30d")]
)
def test_purge_says_what_it_does_not_understand(done: Path, flags: tuple[str, ...], words: str) -> None:
    code, said = command("purge", done, "--yes", *flags)
    assert (code, words in said) == (2, True)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="links")
def test_purge_follows_no_link_out_of_the_folder(done: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "p0.wav").write_bytes(b"mine")
    shutil.rmtree(done / "audio")
    (done / "audio").symlink_to(outside)
    command("purge", done, "--yes")
    assert (outside / "p0.wav").read_bytes() == b"mine"


def test_a_manifest_in_parts_is_made_by_report_and_goes_with_a_purge(done: Path) -> None:
    code, said = command("report", done, "--parts", "2", "--parquet")
    names = [f"manifest-parts/0000{n}.{ending}" for ending in ("csv", "parquet") for n in (1, 2)]
    assert (code, said.split()) == (0, [str(done / name) for name in names])
    assert [len(read_manifest(done / name)) for name in names[:2]] == [2, 1]
    assert command("verify", done)[0] == 0
    assert command("purge", done, "--yes")[0] == 0
    assert not list((done / "manifest-parts").glob("*"))
