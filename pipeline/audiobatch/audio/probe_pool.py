"""Probe on all cores: worker processes that take paths over pipes.

Hostile bytes that crash a decoder end one worker (`probe_worker`), and not the pool, as with `multiprocessing`. A
worker that dies is started again, and the file that killed it is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from audiobatch.child_process import ChildProcess, StartFailed, without_credentials
from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

#: Files a worker takes at a time.
FILES_A_BATCH = 16
#: A file that takes longer is refused; an hour of the slowest format takes five seconds.
LONGEST_PROBE_S = 900.0
#: Starting a worker takes half a second; a machine under load is given much more.
START_TIMEOUT_S = 120.0

_DIED = "reading it crashed the decoder: its content is damaged"


def usable_cores() -> int:
    """Return the number of cores that this process may use; a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProbePool:
    """Worker processes, one for each thread of this pool; a context manager that ends them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="probe")
        self._mine = threading.local()
        self._workers: set[ChildProcess] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(wait=True)
        for worker in workers:
            worker.stop(None)

    def answers(self, paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield each path with its worker's answer, in order; at most two batches a worker are in flight."""
        source = iter(paths)
        waiting: deque[tuple[list[Path], Future[list[dict[str, Any]]]]] = deque()
        while True:
            while len(waiting) < 2 * self._count and (batch := list(islice(source, FILES_A_BATCH))):
                waiting.append((batch, self._threads.submit(self._probe, batch)))
            if not waiting:
                return
            done, answers = waiting.popleft()
            yield from zip(done, answers.result(), strict=True)

    def submit(self, path: Path) -> Future[dict[str, Any]]:
        """Probe a single path."""
        return self._threads.submit(self._probe_one, path)

    def _probe(self, batch: list[Path]) -> list[dict[str, Any]]:
        return [self._probe_one(path) for path in batch]

    def _probe_one(self, path: Path) -> dict[str, Any]:
        worker = self._worker()
        # A worker that died, or was ended for taking too long, leaves no line or half of one.
        with contextlib.suppress(OSError, ValueError):
            worker.write_line(json.dumps(os.fspath(path.absolute())).encode())
            answer: dict[str, Any] = json.loads(worker.read_line(LONGEST_PROBE_S))
            return answer
        _log.warning("%s: %s", path.name, _DIED)
        self._mine.worker = None
        with self._lock:
            self._workers.discard(worker)
        worker.stop(None)
        return {"refusal": _DIED}

    def _worker(self) -> ChildProcess:
        """Return this thread's worker, started when first needed.

        Raises:
            ConfigError: it does not start, for whatever file.
        """
        worker: ChildProcess | None = getattr(self._mine, "worker", None)
        if worker is not None:
            return worker
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            worker = ChildProcess(
                "audiobatch.audio.probe_worker",
                env={
                    **without_credentials(),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
            self._workers.add(worker)
        try:
            worker.wait_ready(START_TIMEOUT_S)
        except StartFailed as failed:
            with self._lock:
                self._workers.discard(worker)
            raise ConfigError(f"recordings cannot be probed: a worker {failed}\n{failed.stderr}") from failed
        self._mine.worker = worker
        return worker
