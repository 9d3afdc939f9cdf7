"""How a contender in a process of its own says what it took."""

from __future__ import annotations

import json
import resource
import time


def report(*, loop_s: float, items: int) -> None:
    """Print one JSON object: seconds of the sending loop, CPU seconds of the process so far, peak memory."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"loop_s": loop_s, "cpu_s": time.process_time(), "peak_mb": peak_kib / 1024, "items": items}
    print(json.dumps(found), flush=True)
