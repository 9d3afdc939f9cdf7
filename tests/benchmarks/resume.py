"""`resume`: a folder that is finished, run again; its plan; its check; beside what the file system itself takes."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.bulk import CONCURRENCY, bulk, sizes
from tests.benchmarks.loopback import job
from tests.benchmarks.session import AUDIOBATCH, Took, place, run
from tests.benchmarks.tables import Table, at_most

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Nothing is to be sent, so nothing listens here.
NOWHERE = "http://127.0.0.1:9"


def benchmark(*, tiny: bool) -> Iterator[Table]:
    done = bulk(sizes(tiny=tiny)[-1])
    again = [*AUDIOBATCH, "run", *job(NOWHERE, done.inputs, done.output, CONCURRENCY), "--no-prefect"]
    fresh = place() / "never-run"
    plan: list[str | Path] = [*AUDIOBATCH, "plan", *job(NOWHERE, done.inputs, fresh, CONCURRENCY), "--json"]
    replan = [*AUDIOBATCH, "plan", *job(NOWHERE, done.inputs, done.output, CONCURRENCY), "--json"]
    find: list[str | Path] = ["find", done.inputs, "-type", "f", "-printf", "%s %T@ %p\\n"]
    sums: list[str | Path] = [
        "sh",
        "-c",
        'find "$1" -type f -print0 | xargs -0 sha256sum',
        "sh",
        done.output / "audio",
    ]
    verify: list[str | Path] = [*AUDIOBATCH, "verify", done.output]

    rounds = 1 if tiny else 3
    found: dict[str, list[Took]] = {"find": [], "again": [], "replan": []}
    for _ in range(rounds):
        found["find"].append(run(find))
        found["again"].append(run([*again, "--json", "-q"]))
        summary = json.loads(found["again"][-1].out.splitlines()[-1])
        assert summary["sent"] == 0, summary
        assert summary["skipped_done"] == done.items, summary
        found["replan"].append(run(replan))
    found |= {"plan": [run(plan)], "sums": [run(sums)], "verify": [run(verify)]}
    shutil.rmtree(fresh, ignore_errors=True)

    middle = {name: sorted(runs, key=lambda one: one.wall_s)[len(runs) // 2] for name, runs in found.items()}
    table = Table(
        "resume",
        f"a folder of {done.items:,} finished items; median of {rounds}, start-up included",
        ["", "s", "CPU s", "peak MB", "s × beside", "aim"],
    )
    rows = (
        ("find", "`find` with `stat` of the inputs", None, ""),
        ("again", "`run` again: nothing to do", "find", at_most(middle["again"].wall_s, 10, " s")),
        ("replan", "`plan` of the same", "find", ""),
        ("plan", "`plan` of recordings never seen: each read, hashed, measured", "find", ""),
        ("sums", "`sha256sum` of the replies' sound", None, ""),
        ("verify", "`audiobatch verify`: sound, transcripts, ledger", "sums", ""),
    )
    for name, title, beside, aim in rows:
        took = middle[name]
        ratio = f"{took.wall_s / middle[beside].wall_s:.1f}" if beside else ""
        peak = "" if name in ("find", "sums") else f"{took.peak_mb:.0f}"
        table.add(title, f"{took.wall_s:.2f}", f"{took.cpu_s:.2f}", peak, ratio, aim)
    spread = statistics.stdev(one.wall_s for one in found["again"]) if rounds > 1 else 0.0
    table.notes.append(f"Spread of `run` again: ± {spread:.1f} s.")
    yield table
