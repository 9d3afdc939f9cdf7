"""What the service's token counter takes for a call, which is not what the call will use.

The gateway counts an estimate before the model runs: the input, and the maximum of the reply, whether the reply
needs it or not (learn.microsoft.com, "Manage Azure OpenAI quota", 2026-11). Where its headers say how many tokens
are left, the counter's own measure is learned from how that number falls; until then a call is taken at the
estimate of what it will really use.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What a gateway is thought to count for a reply when the request names no maximum; only a basis to learn from.
UNSTATED_MAXIMUM = 1000.0
#: So many calls must lie between two readings before they are compared: replies come back out of order.
_LEAST_CALLS = 8
_BOUNDS = (0.02, 50.0)
#: A count that was learned is taken a little higher: being refused costs more than half a percent.
_CAUTION = 1.004


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTokens:
    """A call before it is made.

    Attributes:
        expected: input and output that it is likely to take.
        input: of which input.
        maximum: output that it may take by its own words; None: it names none.
    """

    expected: float
    input: float = 0.0
    maximum: float | None = None

    @property
    def basis(self) -> float:
        """What a gateway would count, up to a factor."""
        return max(1.0, self.input + (UNSTATED_MAXIMUM if self.maximum is None else self.maximum))


@dataclass(slots=True)
class TokenCharge:
    """Learns one deployment's measure. `factor` × basis is what its counter takes; None: not known."""

    factor: float | None = None
    _basis_sent: float = 0.0
    _calls_sent: int = 0
    _from: tuple[float, int, float] | None = None
    _last: tuple[int, float] = (0, 0.0)

    def of(self, call: CallTokens) -> float:
        return call.expected if self.factor is None else call.basis * self.factor * _CAUTION

    def sent(self, call: CallTokens) -> tuple[float, int]:
        """A call is being made. Returns its mark, to be given back with what its reply says."""
        self._basis_sent += call.basis
        self._calls_sent += 1
        return self._basis_sent, self._calls_sent

    def begin_anew(self) -> None:
        """Forget the readings so far: other processes began, or ended, to move the same counter."""
        self._from = None

    def left(self, mark: tuple[float, int], tokens_left: float, part: float = 1.0) -> None:
        """The reply to the call of this mark said how many tokens are left in the current minute.

        Args:
            mark: of the call.
            tokens_left: to all who share the counter.
            part: of what moves the counter that is this process's.
        """
        basis, calls = mark
        if calls <= self._last[0]:
            return  # overtaken by a later call's reply
        if self._from is None or tokens_left > self._last[1]:
            self._from = (basis, calls, tokens_left)  # a new minute
        self._last = (calls, tokens_left)
        fell, spent = (self._from[2] - tokens_left) * part, basis - self._from[0]
        if calls - self._from[1] < _LEAST_CALLS or fell <= 0 or tokens_left <= 0:
            return
        seen = min(_BOUNDS[1], max(_BOUNDS[0], fell / spent))
        self.factor = seen if self.factor is None else self.factor + 0.2 * (seen - self.factor)
