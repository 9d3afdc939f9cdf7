"""`python -m tests.benchmarks [NAME…]`: measure, print Markdown, and with --json write the same as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from tests.benchmarks.tables import circumstances

BENCHMARKS = ("overhead", "audio")


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
        module = importlib.import_module(f"tests.benchmarks.{name}")
        for table in module.benchmark(tiny=given.tiny):
            print(table.markdown(), flush=True)
            tables.append(
                {"name": table.name, "work": table.work, "columns": table.columns, "rows": table.rows}
            )
    if given.json:
        given.json.write_text(json.dumps({"on": about, "tables": tables}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
