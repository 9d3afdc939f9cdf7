"""Requests to a store, made again while they fail for a reason that passes: the one layer that retries here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from audiobatch.storage.store_errors import is_passing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: How long a store may be away or too busy before it counts as failed.
PATIENCE_S = 120.0
#: A store that never answered is rather a wrong name or address.
FIRST_PATIENCE_S = 15.0
#: File systems whose store has said anything in this process.
_ANSWERED: WeakSet[Any] = WeakSet()


class Asking:
    """Asks one file system's store. For any thread."""

    def __init__(self, filesystem: Any, patience_s: float | None = None) -> None:
        self._filesystem = filesystem
        self._patience_s = PATIENCE_S if patience_s is None else patience_s

    def __call__(self, call: Callable[[], _T]) -> _T:
        """What `call` returns, or raises for good. It must be one that may be made twice."""
        known = self._filesystem in _ANSWERED
        for attempt in Retrying(
            retry=retry_if_exception(is_passing),
            stop=stop_after_delay(self._patience_s if known else min(self._patience_s, FIRST_PATIENCE_S)),
            wait=wait_random_exponential(multiplier=0.2, max=15),
            before_sleep=_say,
            reraise=True,
        ):
            with attempt:
                return self._once(call)
        raise AssertionError  # the last attempt returned or raised

    def _once(self, call: Callable[[], _T]) -> _T:
        try:
            answer = call()
        except Exception as failed:
            if not is_passing(failed):
                _ANSWERED.add(self._filesystem)
            raise
        _ANSWERED.add(self._filesystem)
        return answer


def _say(state: RetryCallState) -> None:
    failed = state.outcome.exception() if state.outcome else None
    log.info("the store did not answer as it should (%s); once more", type(failed).__name__)
