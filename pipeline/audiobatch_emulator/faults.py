"""Faults by rule: when something goes wrong, and what.

A list of rules `{"when": {…}, "do": {…}}`. Every key is optional; all conditions of a rule must hold; the
first rule that matches wins. The pydantic models below are the schema, and refuse what they do not know.

A rule counts the requests that meet its conditions other than `nth`, `every` and `share`, whether or not an
earlier rule won them; `nth` and `every` are of that count, from 1. `share` is drawn from the seed, the rule,
the request's content and its attempt: the same requests meet the same faults in whatever order they come.
"""

import hashlib
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

Corruption = Literal[
    "base64", "json", "html", "no_audio", "silent", "text_only", "wav_header", "no_done", "close"
]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Latency(_Strict):
    """A wait before the reply: the sum of what is given."""

    fixed: Seconds = 0.0
    median: Seconds = 0.0
    """The median of a log-normal distribution, with `sigma` of its logarithm."""
    sigma: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] = 0.5
    per_audio_s: Seconds = 0.0
    """Seconds for each second of audio, of the request and the reply together."""


class When(_Strict):
    """The conditions."""

    deployment: str | None = None
    every: Annotated[int, Field(ge=1)] | None = None
    nth: Annotated[int, Field(ge=1)] | None = None
    attempt_below: Annotated[int, Field(ge=0)] | None = None
    """Attempts count from 0: `1` hits first attempts only."""
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    after_s: Seconds | None = None
    """Seconds since these rules were set."""
    before_s: Seconds | None = None
    text: str | None = None
    """Stands somewhere in the texts of the request's messages."""


class Do(_Strict):
    """The effects. Without `status` the reply is the normal one, but for the other effects."""

    status: Annotated[int, Field(ge=200, le=599)] | None = None
    body: Any = None
    """JSON, or a string that is sent as it is; the service's own words for that status where missing."""
    headers: dict[str, str] = Field(default_factory=dict)
    latency_s: Seconds | Latency = 0.0
    reset: Literal["before", "in", "after"] | None = None
    stall_s: Seconds = 0.0
    """Half of the body at once, then a byte now and then for so long, then the rest."""
    corrupt: Corruption | None = None
    close_code: Annotated[int, Field(ge=1000, le=4999)] | None = None
    """Closes a socket with this code; 1006 drops the connection without a close frame."""
    expire_tokens: bool = False
    """Ends every token issued so far before this request is looked at."""

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
                raise ValueError(f"{name!r}: {value!r} cannot be sent as a header")
        return headers

    def describe(self) -> str:
        """Returns what goes wrong, in a few words, for the journal."""
        words = [
            f"status {self.status}" if self.status is not None else "",
            "latency" if self.latency_s not in (0, 0.0) else "",
            f"reset {self.reset}" if self.reset else "",
            "stall" if self.stall_s else "",
            f"corrupt {self.corrupt}" if self.corrupt else "",
            f"close {self.close_code}" if self.close_code is not None else "",
            "expire_tokens" if self.expire_tokens else "",
            "headers" if self.headers and self.status is None else "",
        ]
        return ", ".join(filter(None, words)) or "none"

    def wait_s(self, *, draw: float, audio_s: float) -> float:
        """Returns the seconds to wait; `draw` is from 0 to 1, where in its distribution this request falls."""
        latency = self.latency_s
        if not isinstance(latency, Latency):
            return latency
        spread = math.exp(latency.sigma * _normal(draw))
        return latency.fixed + latency.median * spread + latency.per_audio_s * audio_s


class Rule(_Strict):
    """One fault."""

    when: When = When()
    do: Do = Do()


RULES: TypeAdapter[list[Rule]] = TypeAdapter(list[Rule])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a rule may look at."""

    deployment: str | None
    text: str
    attempt: int
    identity: str
    """The request's content, in one word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A rule that hit, and where in its distributions this request falls (0 to 1)."""

    do: Do
    draw: float


NO_FAULT = Fault(do=Do(), draw=0.5)


class Faults:
    """The rules in force."""

    def __init__(
        self, initial: list[Rule] | None = None, *, seed: int = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._initial = initial or []
        self._seed = seed
        self._now = now
        self.set(self._initial)

    def set(self, rules: list[Rule]) -> None:
        """Replaces all rules; counts and times start anew."""
        self.rules = list(rules)
        self._counts = [0] * len(rules)
        self._set_at = self._now()

    def reset(self) -> None:
        """Restores the rules of the start."""
        self.set(self._initial)

    def match(self, ask: Ask, applies: Callable[[Rule], bool] | None = None) -> Fault | None:
        """Returns the first rule that holds for this request; rules for other kinds are passed over."""
        since_s = self._now() - self._set_at
        hit: Fault | None = None
        for index, rule in enumerate(self.rules):
            if not _holds(rule.when, ask, since_s) or (applies is not None and not applies(rule)):
                continue
            self._counts[index] += 1
            if hit is None and self._picked(index, ask):
                hit = Fault(do=rule.do, draw=self._draw(index, ask, "effect"))
        return hit

    def _picked(self, index: int, ask: Ask) -> bool:
        when, count = self.rules[index].when, self._counts[index]
        return (
            (when.nth is None or count == when.nth)
            and (when.every is None or count % when.every == 0)
            and (when.share is None or self._draw(index, ask, "share") < when.share)
        )

    def _draw(self, index: int, ask: Ask, purpose: str) -> float:
        seed = f"{self._seed}|{index}|{purpose}|{ask.identity}|{ask.attempt}".encode("utf-8", "replace")
        return random.Random(hashlib.sha256(seed).digest()).random()


def _holds(when: When, ask: Ask, since_s: float) -> bool:
    return (
        (when.deployment is None or when.deployment == ask.deployment)
        and (when.attempt_below is None or ask.attempt < when.attempt_below)
        and (when.after_s is None or since_s >= when.after_s)
        and (when.before_s is None or since_s < when.before_s)
        and (when.text is None or when.text in ask.text)
    )


def _normal(draw: float) -> float:
    """Returns the standard normal quantile of `draw`, kept within four standard deviations."""
    return NormalDist().inv_cdf(min(max(draw, 3.2e-5), 1 - 3.2e-5))
