"""Counts what a run has done so far: for the progress line, the limits, and the summary."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from audiobatch.model import CostBasis, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.address import Location
    from audiobatch.model import Outcome, Usage

#: The rate on the progress line is that of the last minute.
RATE_WINDOW_S = 60.0
#: From so many ended items on, the cost of the rest can be projected.
FEW = 5


@dataclass(slots=True)
class RunStats:
    """Counts of items, and sums over the calls of this run.

    Attributes:
        not_transcribed: results that the transcription service could not transcribe.
        unfinished: items with a reply that is paid for and could not be processed.
        finished: replies that were paid for earlier, and finished from their bodies.
        trimmed_s: seconds of silence that were not sent.
        sent: items of which at least one call was made.
        estimated: replies without token counts: their cost is our estimate.
        cost_is_known: no call was billed, or perhaps billed, at an unknown cost.
        by_deployment: calls that brought a reply, and their cost; None where that is unknown.
    """

    sent: int = 0
    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    calls: int = 0
    not_transcribed: int = 0
    unfinished: int = 0
    finished: int = 0
    trimmed_s: float = 0.0
    failures: int = 0
    input_audio_s: float = 0.0
    output_audio_s: float = 0.0
    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    cost_is_known: bool = True
    estimated: int = 0
    by_deployment: dict[str, tuple[int, Decimal | None]] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    _ends_s: deque[float] = field(default_factory=deque)
    _called: set[str] = field(default_factory=set)

    def called(self, item_id: str) -> None:
        """Count a call of an item that leaves."""
        self.calls += 1
        if item_id not in self._called:
            self._called.add(item_id)
            self.sent += 1

    def item_ended(self, status: Status, item_id: str = "") -> None:
        """Count an item that has all its turns, or gets no further in this run."""
        self._called.discard(item_id)
        match status:
            case Status.SUCCEEDED:
                self.succeeded += 1
            case Status.UNKNOWN:
                self.unknown += 1
            case Status.PENDING:
                self.unfinished += 1
                return
            case _:
                self.failed += 1
        self._ends_s.append(time.monotonic())

    def turn_ended(self, outcome: Outcome, *, input_audio_s: float) -> None:
        """Count a turn, and the audio that was sent and received for it."""
        if outcome.status is not Status.SUCCEEDED:
            self.failures += 1
            return
        self.input_audio_s += input_audio_s
        self.trimmed_s += outcome.trimmed_s or 0.0
        self.output_audio_s += outcome.audio_duration_s or 0.0

    def paid(
        self,
        usage: Usage | None,
        cost_usd: Decimal | None,
        deployment: str = "",
        basis: CostBasis = CostBasis.USAGE,
    ) -> None:
        """Count a call that was billed; its cost may be an estimate, or unknown (None)."""
        self.estimated += cost_usd is not None and basis is CostBasis.ESTIMATE
        calls, paid = self.by_deployment.get(deployment, (0, Decimal(0)))
        known = None if paid is None or cost_usd is None else paid + cost_usd
        self.by_deployment[deployment] = (calls + 1, known)
        if usage is not None:
            self.input_text_tokens += usage.input_text_tokens
            self.input_audio_tokens += usage.input_audio_tokens
            self.output_text_tokens += usage.output_text_tokens
            self.output_audio_tokens += usage.output_audio_tokens
        if cost_usd is None:
            self.cost_is_known = False
        else:
            self.cost_usd += cost_usd

    def projected_usd(self, total: int) -> Decimal | None:
        """Project the cost of `total` items from those so far; None: too early, or a price is unknown."""
        if not self.cost_is_known or self.ended < FEW or total <= self.ended:
            return None
        return self.cost_usd * total / self.ended

    @property
    def ended(self) -> int:
        """Items that have ended, whichever way."""
        return self.succeeded + self.failed + self.unknown

    def rate_per_min(self) -> float:
        """Return how many items ended a minute, over the last minute or the run so far."""
        now_s = time.monotonic()
        while self._ends_s and self._ends_s[0] < now_s - RATE_WINDOW_S:
            self._ends_s.popleft()
        window_s = min(RATE_WINDOW_S, now_s - self.started_s)
        return len(self._ends_s) * 60 / window_s if window_s > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        phase: `discovering`, `sending`, `draining` or `reporting`.
        total: items that this run sends; while discovering, inputs found so far.
        waiting: why calls wait, in a sentence; empty when they do not.
        eta_s: None while there is no rate to go by.
        cost_usd: None where a price is unknown, or the cost of a call that was perhaps billed.
        projected_usd: the cost of the whole run if all items cost as those so far; None: too early to say.
    """

    phase: str
    total: int
    done: int
    failed: int
    refused: int
    unknown: int
    in_flight: int
    rate_per_min: float
    eta_s: float | None
    cost_usd: Decimal | None
    waiting: str
    projected_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """How a run ended. Counts are items of this run unless said otherwise.

    Attributes:
        items: inputs that discovery saw.
        sent: items of which at least one call was made.
        pending: items that a later run will send, or finish.
        finished: replies of earlier runs that were finished from their bodies; nothing was paid for them.
        skipped_done: items whose results were there already.
        cost_usd: None where a price is not known, or what a call cost that was perhaps billed.
        by_deployment: calls that brought a reply, and what they cost; None where that is not known.
        message: what a person should know or do; may be empty.
    """

    run_id: str
    output: Location
    manifest: Location
    exit_code: int
    items: int
    sent: int
    succeeded: int
    failed: int
    refused: int
    unknown: int
    pending: int
    skipped_done: int
    cost_usd: Decimal | None
    input_audio_s: float
    output_audio_s: float
    elapsed_s: float
    stopped_by: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    by_deployment: Mapping[str, tuple[int, Decimal | None]] = field(default_factory=dict)
    message: str = ""
    finished: int = 0

    @property
    def tokens(self) -> int:
        """All tokens, input and output."""
        return self.input_tokens + self.output_tokens

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints: these keys, in this order."""
        return {
            "run_id": self.run_id,
            "output": str(self.output),
            "manifest": str(self.manifest),
            "exit_code": self.exit_code,
            **{
                name: getattr(self, name)
                for name in ("items", "sent", "succeeded", "failed", "refused", "unknown", "pending")
            },
            "skipped_done": self.skipped_done,
            "cost_usd": None if self.cost_usd is None else float(self.cost_usd),
            "input_audio_s": round(self.input_audio_s, 3),
            "output_audio_s": round(self.output_audio_s, 3),
            "elapsed_s": round(self.elapsed_s, 3),
            "stopped_by": self.stopped_by,
            "finished": self.finished,
        }
