"""Several `audiobatch run` processes on one PostgreSQL ledger, some of them killed: is every item done, and once?

    python -m tests.crash.many_runs --runs 4 --kill 2 --late 1 --items 2000 --rpm 1800

A real server, the emulator with a quota that it enforces, runs as processes of their own. Some get SIGKILL while
they send; some join late. At the end the emulator's journal, the ledger, the manifest and the files are compared,
and this is printed: items done, recorded twice, paid for again beyond what was unknown, calls refused for rate, and
the most calls that any ten seconds saw beside what the quota allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

from audiobatch.ledger.engine import schema_of  # noqa: E402
from audiobatch_emulator.process import EmulatorProcess  # noqa: E402
from tests.crash import observing  # noqa: E402
from tests.postgresql_server import PostgresqlServer  # noqa: E402

WINDOW_S = 10.0
_RUN = "from audiobatch_flows.cli.main import main; main()"


class Runs:
    """The processes, and what their ledger says meanwhile."""

    def __init__(
        self, options: argparse.Namespace, emulator: EmulatorProcess, database: PostgresqlServer, folder: Path
    ) -> None:
        self.options, self.emulator, self.database, self.folder = options, emulator, database, folder
        self.output = folder / "out"
        self.schema = schema_of(str(self.output.resolve()))
        self.texts = {f"p{n:05}": f"Say the number {n}." for n in range(options.items)}
        self.table = folder / "prompts.csv"
        rows = [f"{name},{text}\n" for name, text in self.texts.items()]
        self.table.write_text("id,prompt\n" + "".join(rows))
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        number = len(self.started)
        arguments = [
            *("run", str(self.table), "--output", str(self.output), "--ledger", self.database.url),
            *("--lease", str(self.options.lease), "--max-concurrency", str(self.options.concurrency)),
            *("--endpoint", self.emulator.base_url, "--deployment", "gpt-audio-1.5"),
            *("--rpm", str(self.options.rpm), "--no-prefect", "--json", "--quiet", "--reports", "none"),
        ]
        environment = {
            **os.environ,
            "AZURE_OPENAI_API_KEY": self.emulator.api_key,
            "XDG_STATE_HOME": str(self.folder / "state"),
            "OPENBLAS_NUM_THREADS": "1",
        }
        with (
            (self.folder / f"run-{number}.out").open("wb") as out,
            (self.folder / f"run-{number}.err").open("wb") as err,
        ):
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, *arguments], env=environment, cwd=ROOT, stdout=out, stderr=err
            )
        self.started.append(process)
        return process

    def said(self, number: int) -> str:
        return (self.folder / f"run-{number}.err").read_text(errors="replace")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            connection.execute(f'SET search_path TO "{self.schema}"')
            return connection.execute(query).fetchall()

    def done(self) -> int:
        try:
            return int(self.rows("SELECT count(*) FROM outcomes")[0][0])
        except Exception:
            return 0  # its first run has not made the tables yet

    def wait_until_done(self, count: int, until_s: float) -> None:
        while self.done() < count:
            if time.monotonic() > until_s or all(process.poll() is not None for process in self.started):
                raise TimeoutError(f"{self.done()} of {count} done; " + self.said(0)[-2000:])
            time.sleep(0.1)


def campaign(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run it; what was wrong, in words."""
    draw = random.Random(options.seed)
    until_s = time.monotonic() + options.seconds
    flags = (
        "--speech",
        "tone",
        "--latency",
        str(options.latency),
        "--quota",
        f"gpt-audio-1.5=rpm:{options.rpm}",
    )
    with PostgresqlServer() as database, EmulatorProcess(*flags) as emulator:
        runs = Runs(options, emulator, database, folder)
        early = options.runs - options.late
        for _ in range(early):
            runs.start()
        steps = sorted(draw.uniform(0.15, 0.75) for _ in range(options.kill + options.late))
        what = ["kill"] * options.kill + ["join"] * options.late
        draw.shuffle(what)
        for share, step in zip(steps, what, strict=True):
            runs.wait_until_done(int(share * options.items), until_s)
            if step == "join":
                runs.start()
            else:
                victim = draw.choice([process for process in runs.started if process.poll() is None])
                victim.send_signal(signal.SIGKILL)
                victim.wait()
            print(f"{share:.0%} done: {step}", file=sys.stderr)
        for process in runs.started:
            process.wait(max(1.0, until_s - time.monotonic()))
        journal = emulator.settled_journal(0)
        (folder / "journal.json").write_text(json.dumps(journal))
        return _judged(options, runs, journal)


def _judged(options: argparse.Namespace, runs: Runs, journal: list[dict[str, Any]]) -> list[str]:
    codes = Counter(process.returncode for process in runs.started)
    outcomes = runs.rows("SELECT item_id, status, perhaps_billed, audio, transcript_file FROM outcomes")
    versions = runs.rows("SELECT count(*) FROM versions")[0][0]
    unknown = runs.rows("SELECT count(*) FROM attempts WHERE state IN ('unknown', 'open')")[0][0]
    workers = runs.rows("SELECT count(*) FROM workers WHERE alive_until > extract(epoch FROM now())")[0][0]
    calls = observing.by_item(journal)
    paid = {
        name: sum(call["billed"] for call in calls.get(observing.hash_of_prompt(text), ()))
        for name, text in runs.texts.items()
    }
    known = {row[0]: row[2] for row in outcomes}
    again = sum(max(0, count - 1 - known.get(name, 0)) for name, count in paid.items())
    refused = sum(call["status"] == 429 for call in journal)
    taken = sorted(_seconds(call["at"]) for call in journal if call["status"] == 200)
    most = _most_in_a_window(taken)
    allowed = options.rpm * WINDOW_S / 60
    broken = sum(not _is_whole(runs.output, text) for row in outcomes for text in row[3:5] if text)
    rows = Counter(row["item_id"] for row in observing.manifest_rows(runs.output))
    sent = [_sent(runs.folder / f"run-{n}.out") for n in range(len(runs.started))]
    found = {
        "items done": (sum(row[1] == "succeeded" for row in outcomes), options.items),
        "recorded twice, or superseded": (versions, 0),
        "paid again, beyond what was unknown": (again, 0),
        "files that are not what was recorded": (broken, 0),
        "manifest rows": (len(rows), options.items),
        "manifest rows doubled": (sum(count > 1 for count in rows.values()), 0),
        "temporary files left": (observing.temporary_files(runs.output), 0),
        "runs still on the roster": (workers, 0),
        "runs killed": (codes[-signal.SIGKILL], options.kill),
        "runs that ended well": (codes[0], options.runs - options.kill),
    }
    wrong = [f"{name}: {count}, not {right}" for name, (count, right) in found.items() if count != right]
    for name, (count, _) in found.items():
        print(f"{name:<40} {count:>8,}")
    print(f"{'calls with an unknown end':<40} {unknown:>8,}   at most {options.kill * options.concurrency}")
    print(
        f"{'calls refused for rate':<40} {refused:>8,}   {refused / max(1, len(journal)):.2%} of {len(journal):,}"
    )
    print(f"{'most calls let through in 10 s':<40} {most:>8,}   the quota allows {allowed:,.0f}")
    lasted_s = taken[-1] - taken[0] if len(taken) > 1 else 0.0
    print(
        f"{'of the quota used':<40} {len(taken) / max(1, options.rpm / 60 * lasted_s):>8.1%}   {lasted_s:.0f} s"
    )
    print(f"{'items sent by each run that ended':<40} {sent}")
    if unknown > options.kill * options.concurrency:
        wrong.append(f"{unknown} calls with an unknown end")
    if refused > options.refused / 100 * len(journal):
        wrong.append(f"{refused} calls refused for rate")
    if most > allowed:
        wrong.append(f"{most} calls in ten seconds, and the quota allows {allowed:.0f}")
    return wrong


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _most_in_a_window(moments: list[float]) -> int:
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - WINDOW_S:
            first += 1
        most = max(most, last - first + 1)
    return most


def _is_whole(output: Path, recorded: str) -> bool:
    path, size_bytes, sha256 = json.loads(recorded)
    data = (output / path).read_bytes() if (output / path).exists() else b""
    return bool(len(data) == size_bytes) and hashlib.sha256(data).hexdigest() == sha256


def _sent(out: Path) -> int | None:
    lines = out.read_text().strip().splitlines()
    return json.loads(lines[-1])["sent"] if lines else None


def main() -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4, help="processes in all")
    parser.add_argument("--kill", type=int, default=2, help="how many of them get SIGKILL while they send")
    parser.add_argument("--late", type=int, default=0, help="how many of them join while the others send")
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--rpm", type=int, default=1800, help="the quota, which the emulator enforces")
    parser.add_argument("--concurrency", type=int, default=16, help="calls in flight of each run")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds a call takes")
    parser.add_argument(
        "--lease", type=float, default=10, help="seconds after which a silent run's items go on"
    )
    parser.add_argument("--refused", type=float, default=0.5, help="per cent that may be refused for rate")
    parser.add_argument("--seconds", type=float, default=900, help="give up after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="audiobatch-many-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            wrong = campaign(options, folder)
        except Exception:
            for path in sorted(folder.glob("run-*.err")):
                print(f"-- {path.name}\n{path.read_text(errors='replace')[-2000:]}", file=sys.stderr)
            raise
    for words in wrong:
        print(f"WRONG: {words}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
