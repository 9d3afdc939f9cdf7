"""Runs of the command line as children of this process: forked, so that a kill costs no start-up.

Everything is imported once, before the first fork; a child is a process like any other, with its own locks and its
own connections, and dies like one.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash import failpoints


def load() -> None:
    """Import what a run needs. No thread may be running yet."""

    import audiobatch.execution.job
    import audiobatch.maintenance.verify  # noqa: F401

    for name in (
        "audiobatch.transports.factory",
        "soundfile",
        "av",
        "soxr",
        "pandas",
        "xlsxwriter",
        "jinja2",
    ):
        importlib.import_module(name)


class Child:
    """One `audiobatch …` in a forked process."""

    def __init__(
        self,
        *arguments: str | Path,
        log: Path,
        env: dict[str, str],
        point: tuple[str, int] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: of the command line.
            log: takes what it says.
            env: beside this process's environment.
            point: where it kills itself.
            prepare: is called in the child before all else.
        """
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            _become([str(argument) for argument in arguments], log, env, point, prepare)
        self.code: int | None = None

    def poll(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, timeout_s: float) -> int | None:
        ends_s = time.monotonic() + timeout_s
        while self.poll() is None and time.monotonic() < ends_s:
            time.sleep(0.005)
        return self.code

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """Kill -9, and wait for its end."""
        self.signal(signal.SIGKILL)
        self.wait(60)
        assert self.code is not None
        return self.code

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _become(
    arguments: list[str],
    log: Path,
    env: dict[str, str],
    point: tuple[str, int] | None,
    prepare: Callable[[], None] | None,
) -> Any:
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(env)
        if prepare is not None:
            prepare()
        if point is not None:
            failpoints.install(*point)
        from audiobatch_flows.cli.main import main

        main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
