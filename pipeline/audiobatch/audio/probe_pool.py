"""Probe on all cores: worker processes that take paths over pipes.

They are `python -m audiobatch.audio.probe_worker`, not `multiprocessing`: that would run the caller's main module
again, and hostile bytes that crash a decoder would end its pool. A worker that dies is replaced, and the file
that killed it is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

#: Files a worker takes at a time.
FILES_A_BATCH = 16
#: A file that takes longer is refused; an hour of the slowest format takes five seconds.
LONGEST_PROBE_S = 900.0

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
        self._workers: set[subprocess.Popen[bytes]] = set()
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
            worker.wait()
            _close(worker)

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
        assert worker.stdin is not None
        assert worker.stdout is not None
        watch = threading.Timer(LONGEST_PROBE_S, worker.kill)
        watch.daemon = True
        line = b""
        try:
            watch.start()
            worker.stdin.write(json.dumps(os.fspath(path.absolute())).encode() + b"\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except OSError:
            line = b""
        finally:
            watch.cancel()
        with contextlib.suppress(ValueError):  # a worker that died may leave half a line
            answer: dict[str, Any] = json.loads(line)
            return answer
        _log.warning("%s: %s", path.name, _DIED)
        self._mine.worker = None
        with self._lock:
            self._workers.discard(worker)
        worker.wait()
        _close(worker)
        return {"refusal": _DIED}

    def _worker(self) -> subprocess.Popen[bytes]:
        """Return this thread's worker; start it when it is first needed."""
        worker: subprocess.Popen[bytes] | None = getattr(self._mine, "worker", None)
        if worker is None:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the pool is closed")
                worker = subprocess.Popen(
                    [sys.executable, "-P", "-m", "audiobatch.audio.probe_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                        "OPENBLAS_NUM_THREADS": "1",
                    },
                )
                self._workers.add(worker)
            self._mine.worker = worker
        return worker


def _close(worker: subprocess.Popen[bytes]) -> None:
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
