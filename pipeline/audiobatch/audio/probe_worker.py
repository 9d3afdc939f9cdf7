"""Run as a worker of `probe_pool`: read paths, one JSON string a line; write facts, one JSON object a line.

It ends when its standard input does, so that no worker outlives the process that started it.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from audiobatch.audio.probe import probe
from audiobatch.errors import InputError


def answer(path: str) -> dict[str, object]:
    """Return the facts of a recording as JSON's own types, or its refusal."""
    try:
        return asdict(probe(Path(path)))
    except InputError as refusal:
        return {"refusal": refusal.message}


def main() -> None:
    """Serve until end of file; the parent process handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
