"""Recordings from an object store, results into it: on Azurite and on an S3 server, also over a bad wire."""

from __future__ import annotations

import io
import json
import random
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from audiobatch.address import Address
from audiobatch.calls.stats import RunSummary
from audiobatch.errors import ConfigError
from audiobatch.storage.object_stores import filesystem_of
from audiobatch.storage.remote import FsspecStorage
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.cli.main import cli, main
from tests.narrowing import local
from tests.postgresql_server import PostgresqlServer
from tests.remote_stores import BUSY, CUT, HALF, KEY, LOST, PASS, RESET, THROTTLED, Store, Wire
from tests.running import audiobatch, azure, last_json, run_job, write_wav

pytestmark = pytest.mark.timeout(600)  # the first use installs Azurite

NAMES = ("anna.wav", "calls/ben.wav", "calls/late shift/zoë #2.wav")


class Bench:
    """A store with recordings in it, and the job that reads them."""

    def __init__(
        self, server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: EmulatorProcess
    ) -> None:
        self.server, self.tmp_path, self.monkeypatch, self.emulator = server, tmp_path, monkeypatch, emulator
        self.use(None)
        self.inputs = FsspecStorage(server.make(f"in-{uuid.uuid4().hex[:12]}") / "recordings")
        self.output = server.make(f"out-{uuid.uuid4().hex[:12]}") / "run1"
        self.results = FsspecStorage(self.output)
        for number, name in enumerate(NAMES):
            self.put(name, pitch_hz=200.0 + 50 * number)
        self.settings = azure(
            emulator,
            inputs=(str(self.inputs.root),),
            output=str(self.output),
            ledger=str(tmp_path / "books" / "run1.db"),
            prompt=("Describe it.",),
        )
        (tmp_path / "books").mkdir()

    def use(self, port: int | None) -> None:
        for name, value in self.server.variables(port).items():
            self.monkeypatch.setenv(name, value)

    def put(self, name: str, *, pitch_hz: float) -> None:
        self.inputs.write(name, write_wav(self.tmp_path / "made.wav", pitch_hz=pitch_hz).read_bytes())

    def run(self, **more: Any) -> RunSummary:
        return run_job(**{**self.settings, **more})

    def command(self, *arguments: str) -> int:
        """A command of the command line, in this process."""
        return cli.main(args=[*map(str, arguments)], standalone_mode=False) or 0

    def manifest(self) -> pd.DataFrame:
        return pd.read_csv(
            io.BytesIO(self.results.read("manifest.csv")),
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )


@pytest.fixture(params=["azurite", "s3"])
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: EmulatorProcess
) -> Bench:
    return Bench(request.getfixturevalue(request.param), tmp_path, monkeypatch, emulator)


# Where the rest of the program does not tell one store from another: `contract/test_storages.py` compares them.
one_store = pytest.mark.parametrize("bench", ["azurite"], indirect=True)


def test_recordings_go_from_store_to_store_and_a_second_run_sends_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        *("--output", str(bench.output), "--ledger", bench.settings["ledger"], "--prompt", "Describe it."),
        *("--no-prefect", "--json", "--quiet", "--deployment", bench.settings["deployment"]),
        *("--endpoint", bench.settings["endpoint"]),
    ]
    if bench.server.protocol == "az":  # in a process of its own, which must end by itself and say no more
        ended = audiobatch("run", str(bench.inputs.root), *flags)
        assert (ended.returncode, ended.stderr) == (0, "")
        summary = last_json(ended.stdout)
    else:
        assert bench.command("run", str(bench.inputs.root), *flags) == 0
        summary = last_json(capsys.readouterr().out)
    assert (summary["sent"], summary["succeeded"]) == (3, 3)
    assert (summary["output"], summary["manifest"]) == (str(bench.output), f"{bench.output}/manifest.csv")

    again = bench.run()
    assert (again.sent, again.skipped_done, again.exit_code) == (0, 3, 0)
    assert len(bench.emulator.journal()) == 3

    # pandas reads it from there by the same address and the same environment.
    options = filesystem_of(bench.output).storage_options
    frame = pd.read_csv(f"{bench.output}/manifest.csv", storage_options=options)
    assert list(frame["item_id"]) == list(NAMES)
    assert set(frame["status"]) == {"succeeded"}
    for path in [*frame["audio_file"], *frame["transcript_file"]]:
        assert bench.results.size(path) > 10
    there = set(bench.results.walk())
    assert {"job.json", "manifest.csv", "manifest.xlsx", "report.html"} <= there
    assert {f"runs/{summary['run_id']}.{ending}" for ending in ("csv", "log")} <= there
    assert not [path for path in there if "ledger" in path or "lock" in path or "tmp" in path]
    page = bench.results.read("report.html").decode()
    assert "./audio/calls/late%20shift/zo%C3%AB%20%232.wav" in page
    assert page.count("<path d=") >= 3

    capsys.readouterr()
    assert bench.command("verify", str(bench.output)) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert bench.command("status", str(bench.output), "--json") == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"succeeded": 3}
    # Nothing that was written anywhere holds the account's key.
    for path in there:
        assert KEY.encode() not in bench.results.read(path)
    for path in bench.tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


@one_store
def test_what_changed_in_the_store_is_sent_again_and_the_old_result_is_kept(bench: Bench) -> None:
    bench.run()
    bench.put("calls/ben.wav", pitch_hz=700.0)  # of the same size, perhaps within the same second
    second = bench.run()
    assert (second.sent, second.skipped_done) == (1, 2)
    assert bench.results.exists("versions/v1/audio/calls/ben.wav")
    bench.inputs.delete("anna.wav")
    third = bench.run()
    assert (third.items, third.sent) == (2, 0)
    assert len(bench.manifest()) == 3  # what was bought stays


@one_store
def test_reviewing_repairing_and_purging_work_by_address(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run()
    where = str(bench.output)
    # A reviewer marks a row in the store's own manifest, and adds a column; the next run keeps both.
    frame = bench.manifest()
    frame.loc[1, "review"] = "redo"
    frame["shift"] = ["early", "late", "late"]
    bench.results.write("manifest.csv", frame.to_csv(index=False).encode("utf-8-sig"))
    bench.run()
    assert list(bench.manifest()["shift"]) == ["early", "late", "late"]
    assert bench.manifest()["review"][1] == "redo"

    marked = bench.tmp_path / "marked.csv"
    marked.write_bytes(bench.results.read("manifest.csv"))
    assert bench.command("review", where, "--apply", str(marked)) == 0
    assert bench.command("retry", where, "--review", "redo", "--no-prefect", "--quiet") == 0
    assert len(bench.emulator.journal()) == 4
    assert bench.results.exists("versions/v1/audio/calls/ben.wav")

    frame = bench.manifest()
    frame.loc[0, "review"] = "ok"
    frame.to_csv(marked, index=False, encoding="utf-8-sig")
    assert bench.command("review", where, "--apply", str(marked)) == 0
    assert bench.command("review", where, "--export", str(bench.tmp_path / "clips")) == 0
    assert (bench.tmp_path / "clips" / "anna.wav").read_bytes() == bench.results.read("audio/anna.wav")

    bench.results.write("audio/stray.wav", b"nobody's")
    bench.results.delete("manifest.csv")
    capsys.readouterr()
    assert bench.command("verify", where) == 3
    assert bench.command("verify", where, "--repair") == 0
    assert bench.results.read("versions/unrecorded/audio/stray.wav") == b"nobody's"
    assert bench.command("report", where, "--jsonl") == 0
    assert f"{where}/manifest.jsonl" in capsys.readouterr().out
    assert len(bench.results.read("manifest.jsonl").splitlines()) == 3

    assert bench.command("purge", where, "--item", "anna.wav", "--yes") == 0
    assert not [path for path in bench.results.walk() if "anna" in path]
    assert bench.command("verify", where) == 0


@one_store
def test_an_output_whose_ledger_was_moved_is_opened_with_it_named(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run()
    moved = bench.tmp_path / "elsewhere.db"
    for suffix in ("", "-wal", "-shm"):
        old = Path(bench.settings["ledger"] + suffix)
        if old.exists():
            old.rename(f"{moved}{suffix}")
    with pytest.raises(ConfigError, match=r"has no ledger at .*run1\.db; name it with --ledger"):
        bench.command("status", str(bench.output))
    assert bench.command("status", str(bench.output), "--ledger", str(moved)) == 0
    assert "succeeded" in capsys.readouterr().out
    # A new file under the old name is not taken for the ledger that is gone.
    with pytest.raises(ConfigError, match=r"is new and knows none of them; all would be bought again"):
        bench.run()
    other = bench.server.make(f"other-{uuid.uuid4().hex[:8]}") / "run2"
    FsspecStorage(other).write("job.json", json.dumps({"job_id": "0123"}).encode())
    with pytest.raises(ConfigError, match="belongs to another output"):
        bench.run(output=str(other), ledger=str(moved))
    assert len(bench.emulator.journal()) == 3


def test_a_run_over_a_bad_wire_loses_nothing_and_pays_once(bench: Bench) -> None:
    for number in range(5):
        bench.put(f"more/{number}.wav", pitch_hz=300.0 + number)
    chance = random.Random(11)
    fates = (THROTTLED, BUSY, RESET, HALF, LOST, CUT)
    with Wire(bench.server.port, lambda *_: PASS) as wire:
        bench.use(wire.port)
        wire.fate = lambda *_: chance.choice(fates) if chance.random() < 0.15 else PASS
        summary = bench.run()
        assert len(wire.fates()) > 5
    assert (summary.succeeded, summary.exit_code) == (8, 0)
    bench.use(None)
    assert len(bench.emulator.journal()) == 8
    assert bench.command("verify", str(bench.output)) == 0
    assert len(bench.manifest()) == 8
    assert not list(bench.results.walk("versions"))


def test_a_store_that_goes_away_in_mid_run_costs_no_reply(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiobatch.storage.object_stores.PATIENCE_S", 1.0)
    with Wire(bench.server.port, lambda *_: PASS) as wire:
        bench.use(wire.port)
        wire.fate = lambda _, method, path: BUSY if method == "PUT" and "/audio/" in path else PASS
        stopped = bench.run()
        assert (stopped.exit_code, stopped.stopped_by) == (2, "storage")
        assert stopped.succeeded == 0
    bench.use(None)
    paid = len(bench.emulator.journal())
    assert paid >= 1
    assert not list(bench.results.walk("audio"))
    second = bench.run()
    assert second.exit_code == 0
    assert len(bench.emulator.journal()) == 3, "a reply was bought twice"
    assert len(list(bench.results.walk("audio"))) == 3
    assert bench.command("verify", str(bench.output)) == 0


@one_store
def test_with_the_ledger_in_a_database_nothing_of_the_job_is_on_this_machine(
    bench: Bench, postgresql: PostgresqlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run(ledger=postgresql.url).succeeded == 3
    again = bench.run(ledger=postgresql.url)
    assert (again.sent, again.skipped_done) == (0, 3)
    assert len(bench.emulator.journal()) == 3
    capsys.readouterr()
    assert bench.command("status", str(bench.output), "--json") == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"succeeded": 3}
    assert bench.command("verify", str(bench.output)) == 0
    assert not list((bench.tmp_path / "books").iterdir())
    assert sum(1 for path in bench.results.walk("runs") if path.endswith(".log")) == 2


@one_store
def test_a_remote_output_without_a_ledger_is_refused_at_once(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot hold the job's ledger .*--ledger PATH .*postgresql"):
        bench.run(ledger=None)
    assert list(bench.results.walk()) == []


def test_a_secret_in_an_address_is_refused_and_repeated_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for address in ("az://in/x?sv=2025&sig=hunter2", "s3://AKIA:hunter2@bucket/x", "https://h/x?sig=hunter2"):
        for arguments in (
            ("run", address, "--provider", "local", "--output", str(tmp_path / "out")),
            ("run", str(tmp_path), "--provider", "local", "--output", address),
            ("status", address),
        ):
            with pytest.raises(SystemExit) as ended:
                main([*arguments, "--no-prefect"] if arguments[0] == "run" else arguments)
            assert ended.value.code == 2
            said = "".join(capfd.readouterr())
            assert "audiobatch: " in said
            assert "hunter2" not in said
            assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_file_addresses_are_local_folders(tmp_path: Path, emulator: EmulatorProcess) -> None:
    write_wav(tmp_path / "in put" / "a.wav")
    summary = run_job(
        **azure(emulator, inputs=((tmp_path / "in put").as_uri(),), output=(tmp_path / "out").as_uri())
    )
    assert summary.succeeded == 1
    assert (tmp_path / "out" / "ledger.db").exists()
    assert local(summary.manifest).samefile(tmp_path / "out" / "manifest.csv")


@one_store
def test_inputs_and_output_may_be_in_different_places(bench: Bench, tmp_path: Path) -> None:
    local = bench.run(output=str(tmp_path / "here"), ledger=None)
    assert local.succeeded == 3
    assert (tmp_path / "here" / "audio" / "calls" / "ben.wav").exists()
    write_wav(tmp_path / "disk" / "a.wav")
    both = (str(bench.inputs.root), str(tmp_path / "disk"), str(Address("memory", "nothing")))
    with pytest.raises(ConfigError, match="memory://nothing: there is no such file or folder"):
        bench.run(inputs=both)
    summary = bench.run(inputs=both[:2])
    assert summary.succeeded == 4
    assert sorted(bench.manifest()["item_id"]) == sorted(
        [*(f"recordings/{name}" for name in NAMES), "disk/a.wav"]
    )
