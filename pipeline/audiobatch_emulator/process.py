"""The emulator in a process of its own, for tests.

    with EmulatorProcess("--speech", "tone") as emulator:
        client = OpenAI(base_url=f"{emulator.base_url}/v1", api_key=emulator.api_key)

Tests under pytest have the fixture `audio_emulator` (`pytest_plugin.py`).
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

READY_S = 60.0
STOP_S = 15.0


class EmulatorProcess:
    """Starts `python -m audiobatch_emulator`; `with` stops it."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        """Args: `flags`: those of `audiobatch emulator`; `env`: added to this process's environment."""
        self._flags = flags
        self._env = env
        self._process: subprocess.Popen[str] | None = None
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed when it ends
        self._said = ""
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Starts it and waits for the ready line. Raises: RuntimeError: it did not start; with what it said."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "audiobatch_emulator", "--exit-on-stdin-close", *self._flags],
            env={**os.environ, **(self._env or {})},
            stdin=subprocess.PIPE,  # it ends with this process, by whatever death
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        assert self._process.stdout is not None
        stdout = self._process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=READY_S)
        except queue.Empty:
            line = ""
        if not line:
            self.kill()
            raise RuntimeError(f"the emulator did not start:\n{self.stderr()}")
        self.ready = json.loads(line)
        return self

    @property
    def base_url(self) -> str:
        """The plain origin, `http://127.0.0.1:P`."""
        return str(self.ready["base_url"])

    @property
    def https_base_url(self) -> str:
        """The TLS origin."""
        return str(self.ready["https_base_url"])

    @property
    def api_key(self) -> str:
        """The key that is let in."""
        return str(self.ready["api_key"])

    @property
    def certificate(self) -> str:
        """The PEM file to trust for TLS."""
        return str(self.ready["certificate"])

    @property
    def pid(self) -> int:
        """The server's process id."""
        return int(self.ready["pid"])

    @property
    def identity_env(self) -> dict[str, str]:
        """What makes a keyless client ask this emulator for its tokens."""
        return {
            "IDENTITY_ENDPOINT": self.ready["identity_endpoint"],
            "IDENTITY_HEADER": self.ready["identity_header"],
        }

    def journal(self) -> list[dict[str, Any]]:
        """Returns all records so far, one a request."""
        records: list[dict[str, Any]] = self._ask("GET", "journal")
        return records

    def settled_journal(self, count: int, *, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Returns the records, once there are `count` and each is finished. Raises: AssertionError: too late."""
        ends_at = time.monotonic() + timeout_s
        while True:
            records = self.journal()
            if len(records) >= count and all(record["finished_at"] for record in records):
                return records
            if time.monotonic() > ends_at:
                raise AssertionError(f"wanted {count} finished records, have {records}")
            time.sleep(0.02)

    def put_faults(self, *rules: dict[str, Any]) -> None:
        """Replaces the fault rules; none ends all faults."""
        self._ask("PUT", "faults", list(rules))

    def put_quotas(self, **quotas: Mapping[str, int | None]) -> None:
        """Sets quotas by deployment name (`**{"gpt-audio": {"rpm": 60}}`)."""
        self._ask("PUT", "quotas", quotas)

    def health(self) -> dict[str, Any]:
        """Returns the answer of the health endpoint."""
        answer: dict[str, Any] = self._ask("GET", "health")
        return answer

    def reset(self) -> None:
        """Restores the state of the start: empty journal, no faults but those of the flags, no memory."""
        self._ask("POST", "reset")

    def stop(self) -> int | None:
        """Asks it to end, and waits; kills it where it does not. Gives its exit code."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._ended()

    def wait(self) -> int:
        """Returns its exit code, once it has ended by itself."""
        assert self._process is not None
        self._process.wait(timeout=READY_S)
        return self._ended()

    def kill(self) -> int | None:
        """Kills it at once, as `kill -9` does."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.kill()
        return self._ended()

    def stderr(self) -> str:
        """Returns what it wrote to standard error so far."""
        if not self._stderr.closed:
            self._stderr.seek(0)
            self._said = self._stderr.read()
        return self._said

    def _ended(self) -> int:
        assert self._process is not None
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self.stderr()
        self._stderr.close()
        return code

    def _ask(self, method: str, what: str, body: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.base_url}/_emulator/{what}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        # Never through a proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as reply:
            return json.loads(reply.read())
