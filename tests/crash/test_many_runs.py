"""Several runs on one PostgreSQL ledger. By hand, in full: `python -m tests.crash.many_runs`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner

from audiobatch.errors import AudioBatchError
from audiobatch.ledger.engine import schema_of
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.cli.main import cli
from tests.crash import observing
from tests.postgresql_server import PostgresqlServer
from tests.running import ROOT, azure, read_manifest, write_wav

#: A busy machine takes half a minute to start a run.
PATIENCE_S = 240.0


def command(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and words, as from the terminal, in this process."""
    ended = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(ended.exception, AudioBatchError):
        return 2, ended.exception.message
    if ended.exception is not None:
        raise ended.exception
    return ended.return_value, ended.output


@pytest.fixture
def company(emulator: EmulatorProcess, postgresql: PostgresqlServer, tmp_path: Path) -> Company:
    return Company(emulator, postgresql, tmp_path)


T = TypeVar("T")


class Company:
    """One job, and the processes that work on it."""

    def __init__(self, emulator: EmulatorProcess, database: PostgresqlServer, folder: Path) -> None:
        self.emulator, self.database, self.folder, self.output = emulator, database, folder, folder / "out"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "AZURE_OPENAI_API_KEY": emulator.api_key,
            "OPENBLAS_NUM_THREADS": "1",
        }

    def prompts(self, count: int) -> dict[str, str]:
        texts = {f"p{n:02}": f"Say the number {n}." for n in range(count)}
        lines = [f"{name},{text}\n" for name, text in texts.items()]
        (self.folder / "prompts.csv").write_text("id,prompt\n" + "".join(lines))
        return texts

    def arguments(self, *more: str) -> list[str]:
        return [
            *("run", str(self.folder / "prompts.csv"), "--output", str(self.output)),
            *("--ledger", self.database.url, "--lease", "2", "--endpoint", self.emulator.base_url),
            *(
                "--deployment",
                "gpt-audio-1.5",
                "--no-prefect",
                "--json",
                "--quiet",
                "--reports",
                "none",
                *more,
            ),
        ]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        with (
            (self.folder / f"{number}.out").open("wb") as out,
            (self.folder / f"{number}.err").open("wb") as err,
        ):
            self.processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        "from audiobatch_flows.cli.main import main; main()",
                        *self.arguments(*more),
                    ],
                    env=self.env,
                    cwd=ROOT,
                    stdout=out,
                    stderr=err,
                )
            )
        return self.processes[-1]

    def said(self, number: int) -> str:
        return (self.folder / f"{number}.err").read_text(errors="replace")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            connection.execute(f'SET search_path TO "{schema_of(str(self.output.resolve()))}"')
            return connection.execute(query).fetchall()

    def until(self, condition: Callable[[], T], why: str) -> T:
        ends_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends_s:
            try:
                if found := condition():
                    return found
            except Exception:
                pass
            time.sleep(0.05)
        raise TimeoutError(why + "".join(self.said(n)[-1500:] for n in range(len(self.processes))))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.timeout(600)
def test_four_runs_on_one_ledger_of_which_two_are_killed_do_every_item_once(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.crash.many_runs", "--runs", "4", "--kill", "2", "--late", "1"),
            # A busy machine sends what it could not send in time in bunches: by hand it is 0.5 %.
            *("--items", "160", "--rpm", "900", "--lease", "3", "--seconds", "500", "--refused", "5"),
            *("--seed", os.environ.get("AUDIOBATCH_TEST_SEED", "3"), "--keep", str(tmp_path / "many")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    print(ended.stdout)


@pytest.mark.timeout(600)
def test_a_run_that_was_stopped_past_its_lease_is_refused_and_its_paid_replies_are_kept(
    company: Company,
) -> None:
    texts = company.prompts(6)
    company.emulator.put_faults({"do": {"latency_s": 1.5}})
    paused = company.start("--max-concurrency", "2")
    try:
        company.until(lambda: company.rows("SELECT 1 FROM attempts WHERE state = 'open'"), "no call was made")
        paused.send_signal(signal.SIGSTOP)
        in_flight = company.rows("SELECT item_id FROM attempts WHERE state = 'open'")
        assert 1 <= len(in_flight) <= 2
        other = company.start("--max-concurrency", "6")
        assert other.wait(PATIENCE_S) == 0, company.said(1)
        done = dict(company.rows("SELECT item_id, request_id FROM outcomes"))
        assert set(done) == set(texts)
        paused.send_signal(signal.SIGCONT)
        assert paused.wait(PATIENCE_S) in {0, 2}, company.said(0)
    finally:
        company.close()
    assert dict(company.rows("SELECT item_id, request_id FROM outcomes")) == done, "what is recorded stands"
    late = {row[0] for row in company.rows("SELECT item_id FROM versions WHERE status = 'succeeded'")}
    if late != {
        row[0] for row in in_flight
    }:  # another began anew while it slept: the next run brings them home
        again = company.start()
        assert again.wait(PATIENCE_S) == 0, company.said(2)
        late = {row[0] for row in company.rows("SELECT item_id FROM versions WHERE status = 'succeeded'")}
    assert late == {row[0] for row in in_flight}, "its replies were paid for, and are kept"
    calls = observing.by_item(company.emulator.settled_journal(0))
    paid = {name: len(calls[observing.hash_of_prompt(text)]) for name, text in texts.items()}
    assert paid == {name: 2 if name in late else 1 for name in texts}
    rows = {row["item_id"]: row for row in read_manifest(company.output / "manifest.csv")}
    assert {name: rows[name]["perhaps_billed"] for name in texts} == {
        name: "1" if name in late else "0" for name in texts
    }
    assert command("verify", company.output)[0] == 0


@pytest.mark.timeout(600)
def test_a_database_that_goes_away_stops_the_run_and_what_was_paid_for_waits_in_the_spool(
    company: Company, tmp_path: Path
) -> None:
    texts = company.prompts(8)
    company.emulator.put_faults({"do": {"latency_s": 2.0}})
    with PostgresqlServer() as server:
        company.database = server
        run = company.start("--max-concurrency", "2")
        try:
            company.until(
                lambda: len(company.rows("SELECT 1 FROM attempts WHERE state = 'open'")) == 2,
                "no calls were made",
            )
            sent = len(company.rows("SELECT 1 FROM attempts"))
            server.stop()
            assert run.wait(PATIENCE_S) == 2, company.said(0)
        finally:
            company.close()
        assert "canary" not in company.said(0)
        kept = list((tmp_path / "state").rglob("*.reply"))
        journal = company.emulator.settled_journal(0)
        assert len(journal) == sent, "nothing more was sent"
        assert len(kept) == 2
        server.start()
        company.emulator.put_faults()
        again = company.start()
        assert again.wait(PATIENCE_S) == 0, company.said(1)
        assert {row[0] for row in company.rows("SELECT item_id FROM outcomes")} == set(texts)
    assert not list((tmp_path / "state").rglob("*.reply"))
    assert len(company.emulator.settled_journal(0)) == len(texts), "what was kept was not bought again"


def test_runs_that_ask_for_something_else_do_not_work_together(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    company.prompts(4)
    company.emulator.put_faults({"do": {"latency_s": 100.0}})
    first = company.start("--max-concurrency", "1")
    try:
        company.until(lambda: company.rows("SELECT 1 FROM attempts WHERE state = 'open'"), "no call was made")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", company.emulator.api_key)
        name = f"(process {first.pid} on "
        code, said = command(*company.arguments("--voice", "ash"))
        assert (code, name in said, "same settings" in said) == (2, True, True), said
        assert name in json.loads(command("status", company.output, "--json")[1])["running"]
        for arguments in (("verify", company.output, "--repair"), ("purge", company.output, "--yes")):
            code, said = command(*arguments)
            assert (code, name in said) == (2, True), said
    finally:
        company.close()


async def test_a_worker_drains_what_a_coordinator_has_planned(
    emulator: EmulatorProcess, postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.execution.job import Job

    for n in range(5):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{n}.txt").write_text(f"Say {n}.")
    spec = JobSpec(
        **azure(emulator),
        inputs=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        ledger=postgresql.url,
        reports=(),
    )
    async with Job.open(spec) as coordinator:
        plan = await coordinator.prepare()
        assert plan.to_send == 5
        async with Job.open(spec, worker=True) as worker:
            drained = await worker.drain()
        assert (drained.exit_code, drained.sent, drained.pending) == (0, 5, 0)
        summary = await coordinator.finish()
    assert (summary.exit_code, summary.sent, summary.pending) == (0, 0, 0)
    assert {row["status"] for row in read_manifest(tmp_path / "out" / "manifest.csv")} == {"succeeded"}
    async with Job.open(spec, worker=True) as worker:
        assert (await worker.drain()).sent == 0


async def test_an_input_that_a_worker_finds_changed_stays_on_the_queue(
    emulator: EmulatorProcess, postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.execution.job import Job

    first, second = (write_wav(tmp_path / "in" / name) for name in ("a.wav", "b.wav"))
    spec = JobSpec(
        **azure(emulator),
        inputs=(str(first.parent),),
        output=str(tmp_path / "out"),
        ledger=postgresql.url,
        reports=(),
    )
    async with Job.open(spec) as coordinator:
        await coordinator.prepare()
        write_wav(second, seconds=2.0)
        async with Job.open(spec, worker=True) as worker:
            assert (await worker.drain()).sent == 2
            assert worker.run_id != worker.context.queue_id
        found = {
            outcome.source.path
            for outcome in coordinator.context.ledger.reader.recorded(coordinator.context.queue_id)
        }
        assert found == {"a.wav", "b.wav"}
        await coordinator.finish()
