"""`python -m tests.benchmarks [NAME…]`: measure, print Markdown, and with --json write the same as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

from tests.benchmarks.tables import circumstances

#: Name → the module below this package, and its function.
BENCHMARKS = {
    "overhead": ("overhead", "benchmark"),
    "prefect": ("with_prefect", "benchmark"),
    "start": ("start", "benchmark"),
    "memory": ("bulk", "memory"),
    "growth": ("bulk", "growth"),
    "resume": ("resume", "benchmark"),
    "quota": ("quota_rivals", "benchmark"),
    "durability": ("durability", "benchmark"),
    "workers": ("workers", "benchmark"),
    "large": ("large", "benchmark"),
    "audio": ("audio", "benchmark"),
    "http": ("http_path", "benchmark"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a moment's work: shows that it runs, measures nothing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables as JSON too")
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    about = circumstances()
    print(", ".join(f"{key} {value}" for key, value in about.items()), "\n", flush=True)
    tables = []
    for name in given.names or BENCHMARKS:
        module, function = BENCHMARKS[name]
        began_s = time.monotonic()
        for table in getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)(
            tiny=given.tiny
        ):
            print(table.markdown(), flush=True)
            tables.append(
                {
                    "name": table.name,
                    "work": table.work,
                    "columns": table.columns,
                    "rows": table.rows,
                    "notes": table.notes,
                }
            )
        print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    if given.json:
        given.json.write_text(json.dumps({"on": about, "tables": tables}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
