"""Run as a worker of `probe_pool`: read paths, one JSON string a line; write facts, one JSON object a line.

It ends when its standard input does, so that no worker outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from audiobatch.audio.probe import probe
from audiobatch.child_process import on_parent_exit
from audiobatch.errors import InputError


def answer(path: str) -> dict[str, object]:
    """Return the facts of a recording as JSON's own types, or its refusal."""
    try:
        return asdict(probe(Path(path)))
    except InputError as refusal:
        return {"refusal": refusal.message}


def main() -> None:
    """Serve until the end of standard input."""
    on_parent_exit(partial(os._exit, 0), watch_input=False)  # a decoder may be at work for minutes
    print("ready", flush=True)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a decoder complains of damaged files without end
        os.dup2(nothing.fileno(), sys.stderr.fileno())
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
