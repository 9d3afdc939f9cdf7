"""What the benchmarks of one run share: a folder for their files, a place for bytecode, a clean environment.

Start-up figures are taken with bytecode cached, as a user has it from the second start on: every contender has
`PYTHONPYCACHEPREFIX` set to a folder of this run (whatever `PYTHONDONTWRITEBYTECODE` says outside), and a first,
unmeasured start fills it.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
AUDIOBATCH = (sys.executable, "-c", "from audiobatch_flows.cli.main import main; main()")
_OTHERS = ("AZURE_", "OPENAI_", "AUDIOBATCH_", "PREFECT_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


@functools.cache
def place() -> Path:
    """A folder that goes when this process does."""
    folder = tempfile.TemporaryDirectory(prefix="audiobatch-bench-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a contender: nobody's settings but ours, a Prefect home of this run, bytecode cached."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(place() / "bytecode"),
        "PREFECT_HOME": str(place() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",  # its own 20 s are too few on a busy machine
        "AZURE_OPENAI_API_KEY": "key",
        **(added or {}),
    }


@dataclass(frozen=True)
class Took:
    """What a process took, with the children that it waited for.

    Attributes:
        began_s: when it was started, on the monotonic clock that all processes share.
        peak_mb: of the largest of them.
    """

    began_s: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    out: str


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, codes: Sequence[int] = (0,)
) -> Took:
    """Run a command to its end.

    Args:
        env: added to `environment()`.
        codes: exit codes that are as they should be.

    Raises:
        RuntimeError: it ended otherwise.
    """
    with tempfile.TemporaryFile(dir=place()) as out, tempfile.TemporaryFile(dir=place()) as err:
        began_s = time.monotonic()
        process = subprocess.Popen(
            command, env=environment(env), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        said = [_all_of(file) for file in (out, err)]
    if process.returncode not in codes:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{''.join(said)[-4000:]}")
    return Took(
        began_s=began_s,
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        out=said[0],
    )


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
