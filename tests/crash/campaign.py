"""Disturb runs in every way until the promise breaks, or the trials are used up.

    python -m tests.crash.campaign --kills 200 --items 300 --concurrency 32 --trials 20 --seed 1

Kinds of faults, all of them unless `--kinds` names some:

    kills        SIGKILL at random instants and at the fail points; SIGINT and SIGTERM (kills.py)
    descriptors  few file descriptors, or fewer than are open for a moment (kinds_machine.py)
    disk         a full disk below the output, the ledger, the spool (kinds_machine.py)
    database     a PostgreSQL ledger that goes away and comes back (kinds_ledger.py)
    service      bodies of every wrong kind (kinds_service.py)
    stopped      SIGSTOP past the lease, with a second run in between (kinds_ledger.py)
    clock        a clock that is set by up to an hour (kinds_clock.py)

What the service billed is compared with ledger, files and manifest. Standard output gets a table; the exit code is
1 when the promise was broken. A kind that this machine cannot have is listed as not run, with the reason.

With `--prefect` the killed runs are Prefect's flows, on a server started for the campaign; then kills come as
signals and at random instants alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]

from audiobatch_emulator.process import EmulatorProcess  # noqa: E402
from tests import flows_prefect  # noqa: E402
from tests.crash import children, kills, trials  # noqa: E402
from tests.crash.kinds_clock import Clock  # noqa: E402
from tests.crash.kinds_ledger import Database, Stopped  # noqa: E402
from tests.crash.kinds_machine import Descriptors, Disk  # noqa: E402
from tests.crash.kinds_service import Service  # noqa: E402

OTHERS = (Descriptors, Disk, Database, Service, Stopped, Clock)
KINDS = ("kills", *(kind.name for kind in OTHERS))


def main() -> int:
    """Run the campaign that the command line asks for; return the exit code."""
    options = _options()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="audiobatch-campaign-"))
    folder.mkdir(parents=True, exist_ok=True)
    faults = folder / "faults.json"
    faults.write_text(json.dumps(kills.FAULTS))
    flags = (
        "--speech",
        "tone",
        "--reply-seconds",
        "0.3",
        "--faults",
        str(faults),
        "--seed",
        str(options.seed),
    )
    began_s = time.monotonic()
    scores: dict[str, trials.Score] = {}
    broken = False
    with EmulatorProcess(*flags, "--journal", str(folder / "journal.jsonl")) as emulator:
        children.load()
        prefect = _prefect() if options.prefect else {}
        assert threading.active_count() == 1, "children are forked: no thread may run here"
        began_s = time.monotonic()
        for number, name in enumerate(options.kinds):
            # Each kind gets its share of the time that is left.
            left_s = began_s + options.seconds - time.monotonic()
            ends_s = time.monotonic() + left_s / (len(options.kinds) - number)
            if name == "kills":
                totals = kills.Campaign(options, emulator, folder, prefect, ends_s).run()
                broken |= totals.broken(options.concurrency)
                scores[name] = _score(totals)
                print(kills.table(totals, options.concurrency) + "\n", flush=True)
                continue
            draw = random.Random(f"{options.seed} {name}")
            kind = OTHERS[KINDS.index(name) - 1](
                trials.Around(emulator, folder, draw, keep=bool(options.keep))
            )
            scores[name] = kind.run(options.trials, ends_s)
            broken |= scores[name].broken
            print(f"{name}: {scores[name].trials} trials", file=sys.stderr, flush=True)
    print(f"seed {options.seed}, {time.monotonic() - began_s:.0f} s")
    print(trials.table(scores), flush=True)
    if not broken and not options.keep:
        shutil.rmtree(folder)
    return 1 if broken else 0


def _score(totals: kills.Totals) -> trials.Score:
    """The killed runs' line of the table; what went wrong with them stands in their own."""
    score = trials.Score(trials=sum(totals.kills.values()), runs=totals.runs, billed=totals.billed)
    score.unknown, score.lost, score.paid_again = totals.unknown, totals.lost, totals.paid_again
    score.seen["jobs"] = totals.jobs
    return score


def _prefect() -> dict[str, str]:
    address = asyncio.run(flows_prefect.url())
    home = str(flows_prefect.home())
    return {
        "PREFECT_API_URL": address,
        "PREFECT_HOME": home,
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kinds", type=_kinds, default=KINDS, help=f"some of {','.join(KINDS)}; default: all"
    )
    parser.add_argument("--trials", type=int, default=10, help="of each kind but kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--items", type=int, default=300, help="of a job that is killed")
    parser.add_argument("--concurrency", type=int, default=32, help="of a job that is killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=3600, help="no more trials after so long, shared by the kinds"
    )
    parser.add_argument(
        "--span", type=float, default=2.5, help="kills come within so many seconds of a run's start"
    )
    parser.add_argument("--signals", type=float, default=0.1, help="share of stops by SIGINT or SIGTERM")
    parser.add_argument("--prefect", action="store_true", help="killed runs are flows on a Prefect server")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    return parser.parse_args()


def _kinds(text: str) -> tuple[str, ...]:
    named = text.split(",")
    if strange := set(named) - set(KINDS):
        raise argparse.ArgumentTypeError(f"there is no kind {', '.join(sorted(strange))}")
    return tuple(name for name in KINDS if name in named)


if __name__ == "__main__":
    sys.exit(main())
