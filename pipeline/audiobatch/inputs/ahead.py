"""Slow work on a stream's items, some of them ahead of the reader; results come in the stream's order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")
_R = TypeVar("_R")

#: A store answers one request in some milliseconds, and many at once in hardly more.
AT_ONCE = 16
#: Items that nothing is done to wait behind one that is worked on; no more than these.
_MOST_WAITING = 1000


class Ahead(Generic[_T, _R]):
    """Works in threads. What the work raises, the reader gets in that item's turn."""

    def __init__(self, work: Callable[[_T], _R], *, at_once: int = AT_ONCE) -> None:
        self._work = work
        self._at_once = at_once

    def results(self, items: Iterable[tuple[_T, bool]]) -> Iterator[tuple[_T, _R | None]]:
        """Each item with its result, in order; with None where its flag is false: nothing is to be done."""
        waiting: deque[tuple[_T, Future[_R] | None]] = deque()
        source = iter(items)
        busy = 0
        more = True

        def full() -> bool:
            return busy >= 2 * self._at_once or len(waiting) >= _MOST_WAITING

        with ThreadPoolExecutor(self._at_once, thread_name_prefix="fetch") as threads:
            try:
                while more or waiting:
                    while more and not full():
                        drawn = next(source, None)
                        if drawn is None:
                            more = False
                            break
                        item, needed = drawn
                        if not needed and not waiting:
                            yield item, None
                            continue
                        waiting.append((item, threads.submit(self._work, item) if needed else None))
                        busy += needed
                    while waiting and (waiting[0][1] is None or full() or not more):
                        item, future = waiting.popleft()
                        yield item, None if future is None else future.result()
                        busy -= future is not None
            finally:
                for _, future in waiting:
                    if future is not None:
                        future.cancel()
