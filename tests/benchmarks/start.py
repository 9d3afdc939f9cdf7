"""`start`: how long a person waits for `--help`, and how long until the first request is on the wire.

Each way takes its turn in each round; a first round, which fills the bytecode cache and migrates the embedded
server's database, is left out. The moment of the first request is taken by the service's side; for Prefect's
trivial flow it is that of the flow's own first line, which is a request too.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.loopback import job
from tests.benchmarks.prefect_server import started_server
from tests.benchmarks.session import AUDIOBATCH, ROOT, Took, place, run
from tests.benchmarks.tables import Table, at_most
from tests.benchmarks.wire import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECORDINGS = ROOT / "sample_inputs" / "recordings"
CONCURRENCY = 16


@dataclass(frozen=True)
class Start:
    first_s: float
    took: Took


def ours(*flags: str, env: dict[str, str]) -> Start:
    """`audiobatch run` on the sample recordings, as for an Azure resource with a key."""
    output = place() / "start-out"
    shutil.rmtree(output, ignore_errors=True)
    with wire() as service:
        command = [*AUDIOBATCH, "run", *job(service.origin, RECORDINGS, output, CONCURRENCY), "-q", *flags]
        took = run(command, env=env)
        assert service.first_s is not None
        return Start(service.first_s - took.began_s, took)


def prefects(*, env: dict[str, str]) -> Start:
    """The trivial flow."""
    with wire() as service:
        host, port = map(str, service.server_address[:2])
        took = run([sys.executable, "-m", "tests.benchmarks.trivial_flow", host, port], env=env)
        assert service.first_s is not None
        return Start(service.first_s - took.began_s, took)


def benchmark(*, tiny: bool) -> Iterator[Table]:
    yield helping(rounds=1 if tiny else 15, warm=not tiny)
    ways: dict[str, Callable[[], Start]] = {
        "without Prefect": lambda: ours("--no-prefect", env={}),
        "trivial, started": lambda: prefects(env=started_server().env),
        "ours, started": lambda: ours(env=started_server().env),
        "trivial, embedded": lambda: prefects(env={}),
        "ours, embedded": lambda: ours(env={}),
    }
    if tiny:  # `prefect` starts a server; its own embedded one takes longest by far
        ways = {name: way for name, way in ways.items() if name in ("without Prefect", "ours, embedded")}
    rounds = 1 if tiny else 5
    found: dict[str, list[Start]] = {name: [] for name in ways}
    if not tiny:
        for way in ways.values():
            way()
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    yield starting(found, rounds)


def helping(*, rounds: int, warm: bool) -> Table:
    bare, helped = [sys.executable, "-c", "pass"], [*AUDIOBATCH, "--help"]
    if warm:
        run(bare)
        run(helped)
    bares: list[Took] = []
    helps: list[Took] = []
    for _ in range(rounds):
        bares.append(run(bare))
        helps.append(run(helped))
    walls = [statistics.median(trial.wall_s for trial in runs) for runs in (bares, helps)]
    cpus = [statistics.median(trial.cpu_s for trial in runs) for runs in (bares, helps)]
    table = Table("start", f"a process's life, median of {rounds}", ["", "s", "CPU s", "s above bare", "aim"])
    table.add("`python -c pass`", f"{walls[0]:.3f}", f"{cpus[0]:.3f}", "", "")
    above_s = walls[1] - walls[0]
    aim = at_most(above_s, 0.4, " s")
    table.add("`audiobatch --help`", f"{walls[1]:.3f}", f"{cpus[1]:.3f}", f"{above_s:.3f}", aim)
    return table


def starting(found: dict[str, list[Start]], rounds: int) -> Table:
    first = {name: statistics.median(run.first_s for run in runs) for name, runs in found.items()}
    whole = {name: statistics.median(run.took.wall_s for run in runs) for name, runs in found.items()}
    cpu = {name: statistics.median(run.took.cpu_s for run in runs) for name, runs in found.items()}
    later_s = first.get("ours, started", float("nan")) - first.get("trivial, started", float("nan"))
    shares = [of["ours, embedded"] / of.get("trivial, embedded", float("nan")) for of in (first, whole)]
    rows = (
        ("without Prefect", "`run --no-prefect`", "", at_most(first["without Prefect"], 1.5, " s")),
        ("trivial, started", "Prefect's trivial flow, server running", "", ""),
        ("ours, started", "`run`, server running", f"{later_s:+.2f} s", at_most(later_s, 1, " s")),
        ("trivial, embedded", "Prefect's trivial flow, its own server", "", ""),
        (
            "ours, embedded",
            "`run`, embedded server",
            f"{shares[0]:.2f} ×; whole {shares[1]:.2f} ×",
            f"{at_most(shares[0], 0.6)}; whole {at_most(shares[1], 0.6)}",
        ),
    )
    table = Table(
        "start",
        f"first request on the wire, ten recordings found and probed before, median of {rounds}",
        ["", "first request, s", "whole process, s", "CPU s", "beside the trivial flow", "aim"],
    )
    for name, title, beside, aim in (row for row in rows if row[0] in found):
        judged = ("", "") if "nan" in beside else (beside, aim)
        table.add(title, f"{first[name]:.2f}", f"{whole[name]:.2f}", f"{cpu[name]:.2f}", *judged)
    table.notes.append(
        "The trivial flow's first request is its first line; CPU is with the children waited for."
    )
    return table
