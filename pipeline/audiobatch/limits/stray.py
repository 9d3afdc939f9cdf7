"""Refusals that have nothing to do with how fast one calls: some services refuse a share of calls at any rate.

Such a share is found by `trial.py`: refusals went on although the rate was well below what had passed. From then
on a refusal speaks of the rate only where refusals come in greater number than that share explains. That is
judged by a cumulative sum (Page's test): each call moves it by the logarithm of how much likelier its end is with
the greater share than with the known one; it never falls below 0, and a sum past `ALARM` is no chance any more.

A call counts as let in when it is sent, and is put right when it is refused: refusals come back at once, replies
after seconds, and counting ends would see a crowd of refusals after each pause.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: With a sum of 10 the greater share is e^10 = 22 000 times as likely: hardly ever chance.
ALARM = 10.0
#: Shares above this are no stray refusals: it is worth while to go slower.
MOST = 0.25
#: Less than this is none.
LEAST = 0.005
#: A share is measured over so many calls and more, the newest counting most.
_REVIEWED_EVERY = 100
_MEMORY = 2000


def at_most(refused: int, calls: int) -> float:
    """The refused share at most: the one observed and two standard errors more."""
    return (refused + 2 * math.sqrt(refused) + 1) / max(1, calls)


@dataclass(slots=True)
class StrayRefusals:
    """One deployment's.

    Attributes:
        share: of all calls, refused whatever the rate; 0: none is known, so each refusal speaks of the rate.
    """

    share: float = 0.0
    _sum: float = 0.0
    _calls: int = 0
    _refused: int = 0
    _step_let_in: float = 0.0
    _step_refused: float = 0.0

    def found(self, refused: int, calls: int) -> None:
        """So many of so many calls were refused although the rate was low."""
        self._calls, self._refused = calls, refused
        self._take(min(MOST, at_most(self._refused, self._calls)))

    def forget(self) -> None:
        self.share = 0.0

    def sent(self) -> None:
        """A call is being made."""
        if not self.share:
            return
        self._calls += 1
        self._sum = max(0.0, self._sum + self._step_let_in)
        if self._calls % _REVIEWED_EVERY == 0:
            self._review()

    def refused(self) -> bool:
        """A call was refused. Returns whether that speaks of the rate."""
        if not self.share:
            return True
        self._refused += 1
        self._sum += self._step_refused - self._step_let_in
        if self._sum < ALARM:
            return False
        self._sum = 0.0
        return True

    def _review(self) -> None:
        """The share is only ever lowered here: a greater one is found as the first was, by going slower."""
        share = at_most(self._refused, self._calls)
        if share < LEAST:
            self.forget()
        elif share < 0.9 * self.share:
            self._take(share)
        if self._calls > _MEMORY:
            self._calls //= 2
            self._refused //= 2

    def _take(self, share: float) -> None:
        greater = max(2 * share, share + 0.05)
        self.share, self._sum = share, 0.0
        self._step_refused = math.log(greater / share)
        self._step_let_in = math.log((1 - greater) / (1 - share))
