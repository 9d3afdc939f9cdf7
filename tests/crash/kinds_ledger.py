"""Faults of a ledger that several share: a database that goes away, and a run that stands still past its lease."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from audiobatch.ledger.engine import schema_of
from tests.crash import children, observing
from tests.crash.trials import Around, Job, Kind
from tests.postgresql_server import PostgresqlServer, _binaries

#: A database that is back within this is waited for.
SHORT_PATIENCE_S = 0.5
LEASE_S = 1.0
IN_FLIGHT = 8


class _OnPostgresql(Kind):
    """Its trials' ledgers are in one server, started for the kind."""

    def __init__(self, around: Around) -> None:
        super().__init__(around)
        self.server: PostgresqlServer | None = None

    def why_not(self) -> str:
        try:
            _binaries()
        except RuntimeError as missing:
            return str(missing)
        return ""

    def __enter__(self) -> Self:
        self.server = PostgresqlServer()
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.server is not None
        self.server.__exit__(None, None, None)

    def shared_job(self, number: int, *, lease_s: float) -> Job:
        server = self.server
        assert server is not None
        job = Job(self, number, concurrency=IN_FLIGHT)
        job.words += ["--ledger", server.url, "--lease", str(lease_s)]

        def look() -> observing.Seen:
            with server.connect() as connection:
                return observing.look_at_schema(connection, schema_of(str(job.output.resolve())))

        job.look = look
        return job


class Database(_OnPostgresql):
    """PostgreSQL stops, crashes, cuts its connections or stands still in mid-run, and is back after seconds."""

    name = "database"

    def trial(self, number: int) -> None:
        job = self.shared_job(number, lease_s=self.random.choice([1.0, 4.0]))
        how = self.random.choice(["stopped", "crashed", "cut", "frozen"])
        short = how in ("stopped", "crashed") and self.random.random() < 0.5
        child = job.start(prepare=_be_impatient if short else None)
        for _ in range(self.random.randint(1, 2)):
            if not job.wait_for_calls(self.random.randint(0, 22), child):
                break
            time.sleep(self.random.uniform(0.0, 0.3))
            self._away(how, child if short else None)
        code = job.ended(child)
        self.score.seen[f"{how}, run ended {code}"] += 1
        job.till_done()
        job.compare()

    def _away(self, how: str, child: children.Child | None) -> None:
        """Args: child: stay away until this one has given up."""
        server = self.server
        assert server is not None
        assert server.process is not None
        away_s = self.random.uniform(0.2, 2.0)
        if how == "cut":
            with server.connect() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND datname = 'audio'"
                )
            return
        if how == "frozen":
            pids = _family(server.process.pid)
            _signal(pids, signal.SIGSTOP)
            time.sleep(away_s)
            _signal(pids, signal.SIGCONT)
            return
        if how == "crashed":
            server.process.send_signal(signal.SIGQUIT)
            server.process.wait(30)
            server.process = None
        else:
            server.stop()
        if child is not None:
            child.wait(30)
        else:
            time.sleep(away_s)
        server.start()


def _be_impatient() -> None:
    """In a run's process: give a database up that does not answer at once."""
    import audiobatch.ledger.database

    vars(audiobatch.ledger.database)["LONGEST_OUTAGE_S"] = SHORT_PATIENCE_S


def _family(pid: int) -> list[int]:
    """A process and its children."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, listed)]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class Stopped(_OnPostgresql):
    """A run stands still for longer than its lease while another works on the same output, and then goes on."""

    name = "stopped"

    def trial(self, number: int) -> None:
        if self.random.random() < 0.25:
            self._alone(number)
            return
        job = self.shared_job(number, lease_s=LEASE_S)
        elsewhere = self.random.random() < 0.5
        # Those in flight when the run fell silent are made again by the other; their replies come late.
        job.most_again = IN_FLIGHT
        first = job.start()
        if not job.wait_for_calls(self.random.randint(1, 20), first):
            job.ended(first)
            job.compare()
            return
        first.signal(signal.SIGSTOP)
        try:
            time.sleep(LEASE_S * self.random.uniform(0.5, 2.5))
            second = job.start(
                prepare=_be_elsewhere if elsewhere else None, env=self._state_of(job, elsewhere)
            )
            second.wait(self.random.uniform(0.1, 5.0))
        finally:
            first.signal(signal.SIGCONT)
        codes = (job.ended(first), job.ended(second))
        self.score.seen[f"ended {codes[0]} and {codes[1]}"] += 1
        job.till_done()
        job.compare()

    def _alone(self, number: int) -> None:
        """With a ledger of its own a run has no lease: its folder stays locked, and the second run says so."""
        job = Job(self, number)
        first = job.start()
        if job.wait_for_calls(self.random.randint(1, 20), first):
            first.signal(signal.SIGSTOP)
            try:
                time.sleep(self.random.uniform(0.1, 1.5))
                if (code := job.ended(job.start())) != 2:
                    job.trouble(f"exit code {code} of a run on a locked folder")
            finally:
                first.signal(signal.SIGCONT)
            self.score.seen["locked out"] += 1
        job.ended(first)
        job.till_done()
        job.compare()

    def _state_of(self, job: Job, elsewhere: bool) -> dict[str, str]:
        return {"XDG_STATE_HOME": str(job.folder / "state-elsewhere")} if elsewhere else {}


def _be_elsewhere() -> None:
    """In a run's process: be another machine."""
    name: Callable[[], str] = lambda: "another-machine"  # noqa: E731 - what it replaces is called so
    platform.node = name
