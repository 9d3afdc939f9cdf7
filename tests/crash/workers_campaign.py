"""A run whose workers a work pool or a Dask cluster starts; one is killed, one joins late: is all done, and once?

    python -m tests.crash.workers_campaign --on pool --items 2000 --rpm 1200
    python -m tests.crash.workers_campaign --on dask --items 2000 --rpm 1200

All of it is real and on this machine: Prefect's server with a process work pool and its worker (or Dask's scheduler
and workers), PostgreSQL for the ledger, Azurite for the results, the emulator with a quota that it enforces. The
worker that has sent most gets SIGKILL in mid-run; later another one joins the same run. At the end the emulator's
journal, the ledger, the manifest and the stored files are compared, and a table is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]

from audiobatch.ledger.engine import schema_of  # noqa: E402
from audiobatch.storage.object_stores import filesystem_of  # noqa: E402
from audiobatch_emulator.process import EmulatorProcess  # noqa: E402
from tests.crash import observing  # noqa: E402
from tests.crash.many_runs import WINDOW_S, _most_in_a_window, _seconds  # noqa: E402
from tests.postgresql_server import PostgresqlServer  # noqa: E402
from tests.remote_stores import Azurite  # noqa: E402

COMMAND = (sys.executable, "-P", "-c", "from audiobatch_flows.cli.main import main; main()")
POOL = "crew"
STARTED_S = 600.0
FILES_AT_ONCE = 50
#: Of all calls, so many may be refused for rate.
MOST_REFUSED = 0.005


class Scene:
    """Everything that the run needs, as processes; ended in reverse order."""

    def __init__(self, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> None:
        self.options, self.folder, self.stack = options, folder, stack
        flags = ("--speech", "tone", "--latency", str(options.latency))
        self.database = stack.enter_context(PostgresqlServer())
        self.emulator = stack.enter_context(
            EmulatorProcess(*flags, "--quota", f"gpt-audio-1.5=rpm:{options.rpm}")
        )
        self.store = Azurite()
        stack.callback(self.store.close)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            **self.store.variables(),
            "AZURE_OPENAI_API_KEY": self.emulator.api_key,
            "XDG_STATE_HOME": str(folder / "state"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "OPENBLAS_NUM_THREADS": "1",
        }
        stack.enter_context(mock.patch.dict(os.environ, self.store.variables()))
        self.output = self.store.make("results")
        self.schema = schema_of(str(self.output / "run"))
        self.texts = {f"p{n:05}": f"Say the number {n}." for n in range(options.items)}
        self.table = folder / "prompts.csv"
        rows = [f"{name},{text}\n" for name, text in self.texts.items()]
        self.table.write_text("id,prompt\n" + "".join(rows))
        if options.on == "pool":
            self._prefect()
        else:
            self._dask()

    def process(self, name: str, *command: str, new_group: bool = False) -> subprocess.Popen[bytes]:
        """Starts a program; it is stopped at the end, if need be by force."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=new_group,
            )
        self.stack.callback(_end, process)
        return process

    def said(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, condition: Any, what: str, patience_s: float = STARTED_S) -> Any:
        ends_s = time.monotonic() + patience_s
        while not (found := condition()):
            if time.monotonic() > ends_s:
                logs = "\n".join(
                    f"-- {path.name}\n{path.read_text(errors='replace')[-1500:]}"
                    for path in sorted(self.folder.glob("*.log"))
                )
                raise TimeoutError(f"{what}\n{logs}")
            time.sleep(0.2)
        return found

    def _prefect(self) -> None:
        self.process("server", *COMMAND, "server", "--port", "0")
        line = self.until(
            lambda: [logged for logged in self.said("server").splitlines() if logged.startswith("For runs")],
            "no server",
        )[0]
        self.environment["PREFECT_API_URL"] = line.partition("=")[2]
        made = [sys.executable, "-m", "prefect", "work-pool", "create", POOL, "--type", "process"]
        subprocess.run(made, env=self.environment, cwd=self.folder, check=True, capture_output=True)
        self.process("worker", sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL)

    def _dask(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        here = ("--host", "127.0.0.1", "--no-dashboard")
        self.process(
            "scheduler", sys.executable, "-m", "distributed.cli.dask_scheduler", *here, "--port", str(port)
        )
        for number in range(self.options.workers):
            self.dask_worker(number)
        self.until(
            lambda: self.said("scheduler").count("Register worker addr") >= self.options.workers,
            "no Dask workers",
        )

    def dask_worker(self, number: int) -> None:
        here = ("--no-nanny", "--no-dashboard", "--nthreads", "1", "--local-directory", str(self.folder))
        self.process(
            f"dask-{number}", sys.executable, "-m", "distributed.cli.dask_worker", self.address, *here
        )

    def run(self) -> subprocess.Popen[bytes]:
        where = (
            ["--work-pool", POOL] if self.options.on == "pool" else ["--dask", self.address, "--no-prefect"]
        )
        flags = [
            *("run", str(self.table), "--output", str(self.output / "run"), "--ledger", self.database.url),
            *("--lease", str(self.options.lease), "--max-concurrency", str(self.options.concurrency)),
            *("--endpoint", self.emulator.base_url, "--deployment", "gpt-audio-1.5"),
            *("--rpm", str(self.options.rpm), "--reports", "none", "--workers", str(self.options.workers)),
        ]
        return self.process("run", *COMMAND, *flags, *where)

    def join(self, number: int) -> None:
        """One more worker, for the run that is at work."""
        if self.options.on == "dask":
            self.dask_worker(number)  # the task of the one that was killed waits for a place, or has one
            return
        [(run_id, spec)] = self.rows("SELECT run_id, spec FROM runs WHERE run_id NOT LIKE '%.%'")
        given = self.folder / "late.json"
        given.write_text(json.dumps({"job": json.loads(spec), "for_run": run_id}))
        program = (
            "import json, sys\n"
            "from prefect.deployments import run_deployment\n"
            "run_deployment('drain/crew', parameters=json.load(open(sys.argv[1])), timeout=0, as_subflow=False)\n"
        )
        started = [sys.executable, "-c", program, str(given)]
        subprocess.run(started, env=self.environment, cwd=self.folder, check=True, capture_output=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            connection.execute(f'SET search_path TO "{self.schema}"')
            return connection.execute(query).fetchall()

    def done(self) -> int:
        try:
            return int(self.rows("SELECT count(*) FROM outcomes WHERE status = 'succeeded'")[0][0])
        except Exception:
            return 0  # the run has not made the tables yet

    def busiest(self) -> int:
        """The process id of the worker that has sent most so far."""
        return int(
            self.rows(
                "SELECT pid FROM workers JOIN attempts USING (run_id) WHERE sharing > 0 "
                "GROUP BY pid ORDER BY count(*) DESC LIMIT 1"
            )[0][0]
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def campaign(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run it; what was wrong, in words."""
    with contextlib.ExitStack() as stack:
        scene = Scene(options, folder, stack)
        began_s = time.monotonic()
        run = scene.run()
        ends = options.items
        scene.until(
            lambda: run.poll() is not None or scene.done() > 0.3 * ends, "no items done", options.seconds
        )
        scene.until(
            lambda: (
                run.poll() is not None
                or scene.rows("SELECT count(*) FROM workers WHERE sharing > 0")[0][0] >= options.workers
            ),
            "not all workers have begun",
            options.seconds,
        )
        assert run.poll() is None, scene.said("run")
        killed = scene.busiest()
        os.kill(killed, signal.SIGKILL)
        print(f"{scene.done()} items done: worker process {killed} killed", file=sys.stderr)
        scene.join(options.workers)
        print(f"{scene.done()} items done: another worker asked for", file=sys.stderr)
        scene.until(lambda: run.poll() is not None, "the run does not end", options.seconds)
        lasted_s = time.monotonic() - began_s
        states = _states(scene) if options.on == "pool" else Counter()
        return _judged(scene, run.returncode, lasted_s, states)


def _states(scene: Scene) -> Counter[str]:
    program = (
        "import asyncio, collections, json\n"
        "from prefect.client.orchestration import get_client\n"
        "async def look():\n"
        "    async with get_client() as client:\n"
        "        runs = await client.read_flow_runs()\n"
        "        return [one.state.name if one.state.is_final() else 'at work' for one in runs]\n"
        "print(json.dumps(collections.Counter(asyncio.run(look()))))\n"
    )

    def look() -> Counter[str]:
        told = subprocess.run(
            [sys.executable, "-c", program], env=scene.environment, cwd=scene.folder, capture_output=True
        )
        return Counter(json.loads(told.stdout.splitlines()[-1]))

    # Prefect's worker closes a killed flow run when it hears of its end.
    ended: Counter[str] = scene.until(
        lambda: (now := look()) and not now["at work"] and now,
        "flow runs are left running",
    )
    return ended


def _judged(scene: Scene, code: int, lasted_s: float, states: Counter[str]) -> list[str]:
    options, journal = scene.options, scene.emulator.settled_journal(0)
    (scene.folder / "journal.json").write_text(json.dumps(journal))
    outcomes = scene.rows("SELECT item_id, status, perhaps_billed, audio, transcript_file FROM outcomes")
    versions = scene.rows("SELECT count(*) FROM versions")[0][0]
    unknown = scene.rows("SELECT count(*) FROM attempts WHERE state IN ('unknown', 'open')")[0][0]
    by_worker = scene.rows(
        "SELECT split_part(run_id, '.', 2), count(*) FROM outcomes GROUP BY run_id ORDER BY 2 DESC"
    )
    calls = observing.by_item(journal)
    paid = {
        name: sum(call["billed"] for call in calls.get(observing.hash_of_prompt(text), ()))
        for name, text in scene.texts.items()
    }
    known = {row[0]: row[2] for row in outcomes}
    again = sum(max(0, count - 1 - known.get(name, 0)) for name, count in paid.items())
    refused = sum(call["status"] == 429 for call in journal)
    taken = sorted(_seconds(call["at"]) for call in journal if call["status"] == 200)
    most, allowed = _most_in_a_window(taken), options.rpm * WINDOW_S / 60
    rows = Counter(row["item_id"] for row in _manifest(scene))
    found = {
        "exit code of the run": (code, 0),
        "items done": (sum(row[1] == "succeeded" for row in outcomes), options.items),
        "recorded twice, or superseded": (versions, 0),
        "paid again, beyond what was unknown": (again, 0),
        "files that are not what was recorded": (_broken(scene, outcomes), 0),
        "manifest rows": (len(rows), options.items),
        "manifest rows doubled": (sum(count > 1 for count in rows.values()), 0),
        "workers that recorded nothing": (max(0, options.senders - len(by_worker)), 0),
    }
    if options.on == "pool":
        found |= {
            "flow runs completed": (states["Completed"], options.workers + 1),
            "flow runs crashed: the one killed": (states["Crashed"], 1),
            "flow runs left in another state": (states.total() - states["Completed"] - states["Crashed"], 0),
        }
    wrong = [f"{name}: {count}, not {right}" for name, (count, right) in found.items() if count != right]
    for name, (count, _) in found.items():
        print(f"{name:<40} {count:>8,}")
    print(f"{'calls with an unknown end':<40} {unknown:>8,}   at most {options.concurrency}")
    print(
        f"{'calls refused for rate':<40} {refused:>8,}   {refused / max(1, len(journal)):.2%} of {len(journal):,}"
    )
    print(f"{'most calls let through in 10 s':<40} {most:>8,}   the quota allows {allowed:,.0f}")
    spent_s = taken[-1] - taken[0]
    used = len(taken) / (options.rpm / 60 * spent_s)
    print(f"{'of the quota used while sending':<40} {used:>8.1%}   {spent_s:.0f} s")
    print(f"{'results by worker':<40} {' '.join(str(count) for _, count in by_worker):>8}")
    print(f"{'seconds from command to end':<40} {lasted_s:>8.0f}")
    if unknown > options.concurrency:
        wrong.append(f"{unknown} calls with an unknown end")
    if refused > max(MOST_REFUSED * len(journal), options.refused_at_least):
        wrong.append(f"{refused} calls refused for rate")
    if most > allowed + options.edge:
        wrong.append(f"{most} calls in ten seconds, and the quota allows {allowed:.0f}")
    if wrong:
        print(scene.said("run")[-2000:], file=sys.stderr)
    return wrong


def _manifest(scene: Scene) -> list[dict[str, str]]:
    place = scene.output / "run" / "manifest.csv"
    text = filesystem_of(scene.output).cat_file(str(place).partition("://")[2]).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _broken(scene: Scene, outcomes: list[tuple[Any, ...]]) -> int:
    files = filesystem_of(scene.output)
    base = str(scene.output / "run").partition("://")[2]
    wanted = [json.loads(text) for row in outcomes for text in row[3:5] if text]
    broken = 0
    for first in range(0, len(wanted), FILES_AT_ONCE):
        some = {
            f"{base}/{path}": (size, sha256) for path, size, sha256 in wanted[first : first + FILES_AT_ONCE]
        }
        there = files.cat(list(some), on_error="omit")
        for path, (size_bytes, sha256) in some.items():
            data = there.get(path, b"")
            broken += len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256
    return broken


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--on", choices=("pool", "dask"), default="pool")
    given.add_argument("--workers", type=int, default=2, help="asked for at the start; one more joins late")
    given.add_argument("--items", type=int, default=2000)
    given.add_argument("--rpm", type=int, default=1200, help="the quota, which the emulator enforces")
    given.add_argument("--concurrency", type=int, default=16, help="calls in flight of each worker")
    given.add_argument("--latency", type=float, default=0.3, help="seconds a call takes")
    given.add_argument(
        "--lease", type=float, default=60, help="seconds after which a silent one's items go on"
    )
    given.add_argument("--seconds", type=float, default=1800, help="give up after so long")
    given.add_argument("--refused-at-least", type=int, default=0, help="so few refusals are no failure")
    given.add_argument("--edge", type=int, default=0, help="calls that a network may move into ten seconds")
    given.add_argument("--senders", type=int, default=3, help="workers that must have recorded results")
    given.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    return given


def main() -> int:
    """Run the campaign; return the exit code."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="audiobatch-workers-", ignore_cleanup_errors=True) as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        wrong = campaign(options, folder)
    for words in wrong:
        print(f"WRONG: {words}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
