"""Programs of ours that run as children of this process, from both sides.

    the parent                                      the child
    ChildProcess("package.module", env=…)           python -P -m package.module
    wait_ready(timeout_s)                           announce("ready"), or a line that says more
    write_line(…), read_line(timeout_s)             standard input and output, where the two talk
    stop(timeout_s)                                 on_parent_exit(act)

`-P` keeps the folder in which the user works off the child's import path: a `queue.py` there is not Python's. The
child's standard input is a pipe from the parent, which ends when the parent does, by whatever death; so no child
outlives it. A child has a session of its own, so that Ctrl-C reaches the parent alone, which then stops the child.
`multiprocessing` does none of this, and runs the caller's main module again.

The emulator starts its engines by itself (`audiobatch_emulator.engine_process`), for it imports nothing of this
package.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What only a process that calls the service needs.
CREDENTIAL_PREFIXES = ("AZURE_", "OPENAI_", "AUDIOBATCH_")
_TAIL_BYTES = 4000
_TAIL_LINES = 15
_PARENT_POLL_S = 1.0


class StartFailed(Exception):
    """A child was not ready in time, or ended before.

    Attributes:
        stderr: the last lines that it wrote to standard error.
    """

    def __init__(self, reason: str, stderr: str) -> None:
        super().__init__(reason)
        self.stderr = stderr


class ChildProcess:
    """A running `python -P -m MODULE`. The caller must stop it; it also ends when this process does."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str]) -> None:
        """Start the child.

        Args:
            env: its whole environment; `without_credentials()` where it does not call the service.
        """
        # Not a pipe: one that nobody reads fills, and stops the child.
        self._stderr = tempfile.TemporaryFile(prefix="audiobatch-")  # noqa: SIM115 - closed by `stop`
        self._tail = ""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=env,
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait_ready(self, timeout_s: float) -> str:
        """Wait for the line with which the child announces itself, and return it. A child that fails is stopped.

        Raises:
            StartFailed: it ended before, or took too long.
        """
        try:
            line = self.read_line(timeout_s)
        except TimeoutError:
            reason = f"was not ready within {timeout_s:g} s"
        else:
            if line:
                return line.decode(errors="replace").strip()
            reason = f"ended with code {self.stop(1.0)} before it was ready"
        self.stop(0.0)
        raise StartFailed(reason, self.stderr_tail())

    def write_line(self, line: bytes) -> None:
        """Write a line to its standard input.

        Raises:
            OSError: it has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def read_line(self, timeout_s: float) -> bytes:
        """Read a line of its standard output; empty where it has ended.

        Raises:
            TimeoutError: there was none in time. The child is killed: only its end ends the reading of a pipe.
        """
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if late.is_set() and not line:
            raise TimeoutError(f"process {self.pid} said nothing for {timeout_s:g} s")
        return line

    def stderr_tail(self) -> str:
        """Return the last lines that it wrote to standard error."""
        if not self._stderr.closed:
            self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = self._stderr.read().decode(errors="replace")
            self._tail = "\n".join(text.strip().splitlines()[-_TAIL_LINES:])
        return self._tail

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close_input(self) -> None:
        """Ask it to end, by closing its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def stop(self, timeout_s: float | None) -> int:
        """Ask it to end, kill it after `timeout_s` (None: never), and return its exit code. Safe to repeat."""
        self.close_input()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.stderr_tail()
        self._stderr.close()
        return code


def without_credentials() -> dict[str, str]:
    """Return this process's environment without the service's credentials."""
    return {name: value for name, value in os.environ.items() if not name.startswith(CREDENTIAL_PREFIXES)}


def announce(line: str) -> None:
    """Tell the parent that this process is ready. What is printed from now on goes to standard error."""
    print(line, flush=True)
    # The parent may have closed the pipe by the time a library prints.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def on_parent_exit(act: Callable[[], object], *, watch_input: bool = True) -> None:
    """Call `act` once, in a thread, when the parent is gone or has closed this process's standard input.

    Args:
        watch_input: read standard input for its end; False where the caller reads it.
    """
    parent = os.getppid()
    once = threading.Lock()

    def when(over: Callable[[], None]) -> None:
        over()
        if once.acquire(blocking=False):
            act()

    def input_ends() -> None:
        with contextlib.suppress(OSError):
            # Not `sys.stdin.read`: its lock, held by a thread, makes the interpreter abort at its end.
            while os.read(0, 1024):
                pass

    def parent_changes() -> None:
        # The pipe's other end may live on in a forked child of the parent; the parent's id does not.
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)

    if watch_input:
        threading.Thread(target=when, args=(input_ends,), daemon=True).start()
    if os.name == "posix":
        threading.Thread(target=when, args=(parent_changes,), daemon=True).start()
