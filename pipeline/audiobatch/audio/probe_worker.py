"""A worker of `probe_pool`: paths in, one JSON string a line; what was found out, one JSON object a line.

It ends when its standard input does, so that none outlives the process that started it.
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
    """What `probe` finds, as JSON's own types; `refusal` alone where it refuses."""
    try:
        return asdict(probe(Path(path)))
    except InputError as refusal:
        return {"refusal": refusal.message}


def main() -> None:
    """Serves until end of file. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
