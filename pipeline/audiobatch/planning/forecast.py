"""What a run would send and cost, before anything is sent: `audiobatch plan`.

Inputs are found and probed, and every decision is made, on a copy of the folder's ledger in a temporary place.
Three figures are given for each amount:

    expected   replies as long as this job's earlier ones, or as the first guess of `estimate.py`
    low        a word or two a reply
    high       every reply as long as it may be: `max_completion_tokens`, or 4096 tokens (3.4 min of speech)

so that the actual amount lies between low and high, unless calls have to be made again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiobatch.config import settings
from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S
from audiobatch.config.targets import check_prices, targets_of, word_targets
from audiobatch.config.transcription_rules import word_models
from audiobatch.errors import ConfigError, InputError
from audiobatch.inputs.discover import Discovery
from audiobatch.inputs.sound_settings import unfit
from audiobatch.ledger.copy import ledger_copy
from audiobatch.model import Status, Usage
from audiobatch.planning.amounts import Amounts
from audiobatch.planning.disk_space import bytes_per_item
from audiobatch.planning.estimate import ReplySizes
from audiobatch.planning.items import build_item
from audiobatch.planning.plan import make_plan, rules_of
from audiobatch.planning.ranges import FIGURES
from audiobatch.planning.word_amounts import WordAmounts
from audiobatch.storage.output import output_name, output_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from audiobatch import address
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Ledger, Recorded
    from audiobatch.planning.plan import Plan
    from audiobatch.planning.ranges import Range

#: A retirement is near when it is this close, in days.
NEAR_DAYS = 180
_RUN_ID = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDeployment:
    """A deployment as the plan shows it."""

    name: str
    provider: str
    model: str
    priority: int
    price_known: bool
    retires: date | None
    retires_in_days: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would do.

    Attributes:
        refused: inputs that would be refused, with the reason.
        calls: calls to be made for replies, if none has to be made again.
        word_calls: calls that write words down, which come on top; `cost_usd` has them, `tokens` has not.
        trimmed_s: silence that is left out of what is sent.
        trimmed_usd: what sending it would cost; None where the price is not known.
        tokens: by kind.
        cost_usd: None where a price is not known.
        time_s: at the quotas that the job names; None: it names none.
        disk_bytes: what the results are expected to take.
        free_bytes: what the output's disk has; None where that cannot be told.
        earlier_replies: how many earlier replies the expectation rests on.
    """

    output: str
    items: int
    to_send: int
    done: int
    refused: dict[str, str]
    final: int
    unknown: int
    held_back: int
    calls: int
    input_audio_s: float
    trimmed_s: float
    trimmed_usd: Decimal | None
    tokens: dict[str, Range]
    cost_usd: dict[str, Decimal] | None
    time_s: float | None
    disk_bytes: int
    free_bytes: int | None
    earlier_replies: int
    word_calls: int
    places: tuple[PlannedDeployment, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        plain = ("output", "items", "to_send", "done", "final", "unknown", "held_back", "calls", "word_calls")
        return {
            **{name: getattr(self, name) for name in plain},
            "refused": [{"item_id": item_id, "reason": reason} for item_id, reason in self.refused.items()],
            "input_audio_s": round(self.input_audio_s, 3),
            "trimmed_s": round(self.trimmed_s, 3),
            "trimmed_usd": None if self.trimmed_usd is None else float(self.trimmed_usd),
            "tokens": {
                kind: {name: round(getattr(of, name)) for name in FIGURES} for kind, of in self.tokens.items()
            },
            "cost_usd": None
            if self.cost_usd is None
            else {name: float(cost) for name, cost in self.cost_usd.items()},
            "time_s": None if self.time_s is None else round(self.time_s),
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "earlier_replies": self.earlier_replies,
            "deployments": [
                {
                    **{
                        name: getattr(one, name)
                        for name in ("name", "provider", "model", "priority", "price_known")
                    },
                    "retires": one.retires.isoformat() if one.retires else None,
                    "retires_in_days": one.retires_in_days,
                }
                for one in self.places
            ],
        }


def forecast(spec: JobSpec, *, today: date | None = None) -> Forecast:
    """Plan the job without sending, and without touching its output folder.

    Raises:
        ConfigError: the run would stop with the same message.
    """
    settings.check_service(spec)
    if not spec.inputs or (spec.output is None and output_name(spec.inputs) is None):
        raise ConfigError("name the inputs to plan for, and --output where there are several")
    where = output_place(spec)
    with (
        tempfile.TemporaryDirectory(prefix="audiobatch-plan-") as place,
        ledger_copy(where.ledger, where.address, Path(place)) as ledger,
    ):
        ledger.queue.empty()
        _discover(spec, ledger)
        plan = make_plan(ledger, spec, _RUN_ID)
        targets = targets_of(spec, plan.deployments, with_credentials=False)
        check_prices(spec, (*targets, *word_targets(spec, targets[0])))
        places = tuple(_planned(one, today or datetime.now(UTC).date()) for one in targets)
        return _forecast(spec, ledger, plan, targets, output=where.place, places=places)


def _discover(spec: JobSpec, ledger: Ledger) -> None:
    stdin = sys.stdin.buffer if "-" in spec.inputs else None
    batch = []
    for source in Discovery(spec, ledger.known_files(), stdin).sources():
        batch.append(source)
        if len(batch) >= 500:
            ledger.put_sources(batch, _RUN_ID)
            batch = []
    ledger.put_sources(batch, _RUN_ID)


def _forecast(
    spec: JobSpec,
    ledger: Ledger,
    plan: Plan,
    targets: Sequence[Target],
    *,
    output: address.Place,
    places: tuple[PlannedDeployment, ...],
) -> Forecast:
    sizes = ReplySizes()
    refused: dict[str, str] = {}
    earlier = 0
    rules = rules_of(spec, None)
    for one in ledger.recorded(_RUN_ID):
        for outcome in one.outcomes.values():
            if outcome.status is Status.SUCCEEDED:
                sizes.saw(outcome)
                earlier += 1
        if reason := _refusal(one, spec):
            refused[one.source.item_id] = reason
    count = Amounts(now_s=time.time())
    words = WordAmounts(written=ledger.written_down() if word_models(spec) else frozenset())
    for one in ledger.recorded_to_do():
        item = build_item(one.source, spec)
        count.add(one, item, rules, sizes, spec)
        words.add(one, item, rules, sizes, spec)
    cost_usd, word_usd = count.cost(targets), words.cost(word_targets(spec, targets[0]))
    return Forecast(
        output=str(output),
        items=plan.items,
        to_send=plan.to_send,
        done=plan.done,
        refused=refused,
        final=plan.final,
        unknown=plan.unknown,
        held_back=plan.held_back,
        calls=count.calls,
        input_audio_s=plan.input_audio_s,
        trimmed_s=plan.trimmed_s,
        trimmed_usd=targets[0].cost_usd(
            Usage(input_audio_tokens=round(plan.trimmed_s * AUDIO_IN_TOKENS_PER_S))
        ),
        tokens=count.tokens,
        cost_usd=None
        if cost_usd is None or word_usd is None
        else {name: cost + word_usd.get(name, 0) for name, cost in cost_usd.items()},
        time_s=count.time_s(targets, spec),
        disk_bytes=round(plan.to_send * bytes_per_item(spec, sizes.audio_s)),
        free_bytes=_free_bytes(output),
        earlier_replies=earlier,
        word_calls=words.calls,
        places=places,
    )


def _refusal(one: Recorded, spec: JobSpec) -> str:
    if reason := one.source.refusal or ("" if one.outcomes else unfit(one.source, spec)):
        return reason
    try:
        build_item(one.source, spec)
    except InputError as refused:
        return refused.message
    return ""


def _planned(one: Target, today: date) -> PlannedDeployment:
    retires = one.price.retires if one.price else None
    return PlannedDeployment(
        name=one.name,
        provider=one.provider,
        model=one.model,
        priority=one.priority,
        price_known=one.price is not None,
        retires=retires,
        retires_in_days=(retires - today).days if retires else None,
    )


def _free_bytes(output: address.Place) -> int | None:
    if not isinstance(output, Path):
        return None
    there = output.resolve()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return None
