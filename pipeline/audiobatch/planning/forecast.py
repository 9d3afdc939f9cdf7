"""What a run would send and cost, before anything is sent: `audiobatch plan`.

Inputs are found and probed, and every decision is made, on a copy of the folder's ledger in a temporary place.
Three figures are given for each amount:

    expected   replies as long as this job's earlier ones, or as the first guess of `tokens.py`
    low        a word or two a reply
    high       every reply as long as it may be: `max_completion_tokens`, or 4096 tokens (3.4 min of speech)

so that the actual amount lies between low and high, unless calls have to be made again.

Calls of `--transcribe-inputs` and `--verify-speech` are counted too.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiobatch.audio.split import count_parts
from audiobatch.config import settings
from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S, AUDIO_OUT_TOKENS_PER_S, total_usd
from audiobatch.config.targets import check_prices, targets_of, transcription_targets
from audiobatch.config.transcription_rules import LONGEST_S, transcription_models, wanted_of
from audiobatch.errors import ConfigError, InputError
from audiobatch.inputs.discover import Discovery
from audiobatch.inputs.sound_settings import why_unsuitable
from audiobatch.ledger.copy import ledger_copy
from audiobatch.model import PartKind, SourceKind, Status, Usage
from audiobatch.planning.disk_space import bytes_per_item
from audiobatch.planning.items import build_item
from audiobatch.planning.plan import make_plan, rules_of
from audiobatch.planning.tokens import FIGURES, HEARD, Conversation, Range, ReplySizes, tokens_of_words
from audiobatch.planning.worst_case import BOUND_TOKENS
from audiobatch.storage.output import output_name, output_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from decimal import Decimal

    from audiobatch import address
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.config.transcription_rules import Written
    from audiobatch.ledger.ledger import Ledger, Recorded
    from audiobatch.model import Item, Outcome, Source, Turn
    from audiobatch.planning.plan import Plan
    from audiobatch.planning.review_rules import Rules
    from audiobatch.planning.tokens import TurnTokens

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
        check_prices(spec, (*targets, *transcription_targets(spec, targets[0])))
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
    words = WordAmounts(written=ledger.written_down() if transcription_models(spec) else frozenset())
    for one in ledger.recorded_to_do():
        item = build_item(one.source, spec)
        count.add(one, item, rules, sizes, spec)
        words.add(one, item, rules, sizes, spec)
    cost_usd, word_usd = count.cost(targets), words.cost(transcription_targets(spec, targets[0]))
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
    if reason := one.source.refusal or ("" if one.outcomes else why_unsuitable(one.source, spec)):
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


KINDS = ("input_text_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens")


@dataclass(slots=True)
class Amounts:
    """Tokens of all calls that would be made, counted while the queue streams past.

    Attributes:
        now_s: epoch seconds, at which earlier replies' audio ids are still good or are not.
        tokens: by kind.
        written_down_s: seconds of recordings that their sessions write down.
    """

    now_s: float
    calls: int = 0
    tokens: dict[str, Range] = field(default_factory=lambda: dict.fromkeys(KINDS, Range()))
    written_down_s: Range = field(default_factory=Range)

    def add(self, one: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """Every turn of an item that is to be sent."""
        conversation = Conversation(item=item, sizes=sizes, spec=spec, now_s=self.now_s)
        for turn in item.turns:
            outcome = one.outcomes.get(turn.number)
            if not rules.stands(one, turn):
                tokens = conversation.asked(turn)
                self._count(tokens)
                self.calls += conversation.parts.expected if turn.number == 1 else 1
                if spec.transcription_model and turn.number == 1:
                    self.written_down_s += HEARD * conversation.heard_s
                conversation.replied(turn, tokens)
            elif outcome is None or outcome.status is not Status.SUCCEEDED:
                return  # nothing can follow it
            else:
                conversation.stands(turn, outcome)

    def _count(self, tokens: TurnTokens) -> None:
        for kind in KINDS:
            added: Range = getattr(tokens, kind)
            self.tokens[kind] += added

    def usage(self, figure: str) -> Usage:
        """All calls' tokens, one of the figures of each."""
        return Usage(**{kind: round(getattr(of, figure)) for kind, of in self.tokens.items()})

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """Low at the cheapest place, high at the dearest, expected at the first in priority."""
        costs = {name: [self._cost(name, one) for one in targets] for name in FIGURES}
        known = {name: [cost for cost in of if cost is not None] for name, of in costs.items()}
        if any(len(known[name]) < len(targets) for name in known):
            return None
        return {"low": min(known["low"]), "expected": known["expected"][0], "high": max(known["high"])}

    def _cost(self, figure: str, target: Target) -> Decimal | None:
        heard, written = self.written_down_s * AUDIO_IN_TOKENS_PER_S, tokens_of_words(self.written_down_s)
        words = Usage(
            input_audio_tokens=round(getattr(heard, figure)),
            output_text_tokens=round(getattr(written, figure)),
        )
        made = words if self.written_down_s.high else None
        return total_usd((target.cost_usd(self.usage(figure)), target.transcription_usd(made)))

    def time_s(self, targets: Sequence[Target], spec: JobSpec) -> float | None:
        """How long the quotas that are given make it; None where none is."""
        tokens = sum(of.expected for of in self.tokens.values())
        rpm = [one.rpm for one in targets]
        tpm = [one.tpm for one in targets]
        times = []
        if all(rpm):
            times.append(self.calls * 60 / sum(one or 0 for one in rpm))
        if all(tpm):
            times.append(tokens * 60 / sum(one or 0 for one in tpm))
        return max(times) if times else None


#: Seconds of sound, as shares of what is expected.
_SOUND = Range(0.3, 1.0, 1.15)


@dataclass(slots=True)
class WordAmounts:
    """Counted while the plan's queue streams past.

    Attributes:
        calls: that write words down, if none has to be made again.
        written: whose words are there already.
    """

    calls: int = 0
    written: AbstractSet[Written] = frozenset()
    _audio: dict[str, Range] = field(default_factory=dict)
    _text: dict[str, Range] = field(default_factory=dict)

    def add(self, one: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """The words of every turn's result, those that are there and those that will be."""
        conversation = Conversation(item=item, sizes=sizes, spec=spec, now_s=0.0)
        for turn in item.turns:
            there = one.outcomes.get(turn.number) if rules.stands(one, turn) else None
            if there is not None:
                lacks = wanted_of(there, one.source, spec, self.written)
            else:
                lacks = () if rules.stands(one, turn) else _will_lack(turn, one.source, spec)
            if spec.transcribe_inputs and PartKind.INPUT in lacks:
                in_session = there is None and spec.transcription_model is not None
                self._count_input(spec.transcribe_inputs, conversation, in_session=in_session)
            if spec.verify_speech and PartKind.SPEECH in lacks:
                spoken_s = _spoken_s(there, conversation, turn)
                self._count(spec.verify_speech, spoken_s, _calls(spoken_s.expected))

    def _count_input(self, model: str, conversation: Conversation, *, in_session: bool) -> None:
        """A recording's words; where its session writes them down too, only if that has found none."""
        parts, heard_s = conversation.parts, conversation.heard_s
        calls = parts.expected if heard_s <= parts.expected * LONGEST_S else count_parts(heard_s).expected
        low_s = 0.0 if in_session else heard_s
        self._count(model, Range(low_s, low_s, heard_s + parts.repeated_s), calls, are_likely=not in_session)

    def _count(self, model: str, sound_s: Range, calls: int, *, are_likely: bool = True) -> None:
        self.calls += calls if are_likely else 0
        heard_s = sound_s * _SOUND
        words = tokens_of_words(sound_s).at_most(calls * BOUND_TOKENS)
        self._audio[model] = self._audio.get(model, Range()) + heard_s * AUDIO_IN_TOKENS_PER_S
        self._text[model] = self._text.get(model, Range()) + words

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """By low, expected and high; None where a price is not known.

        Args:
            targets: where words are written down, named by their models.
        """
        prices = {one.name: one for one in targets}
        costs = {
            name: total_usd(prices[model].cost_usd(self._usage(model, name)) for model in self._audio)
            for name in FIGURES
        }
        known = {name: cost for name, cost in costs.items() if cost is not None}
        return known if len(known) == len(costs) else None

    def _usage(self, model: str, figure: str) -> Usage:
        return Usage(
            input_audio_tokens=math.ceil(getattr(self._audio[model], figure)),
            output_text_tokens=math.ceil(getattr(self._text[model], figure)),
        )


def _will_lack(turn: Turn, source: Source, spec: JobSpec) -> tuple[PartKind, ...]:
    """The words that a turn's result will lack once it is there."""
    lacks_input = spec.transcribe_inputs and turn.number == 1 and source.kind is SourceKind.RECORDING
    lacks_speech = spec.verify_speech and turn.wants_audio
    return tuple(
        kind for kind, lacks in ((PartKind.INPUT, lacks_input), (PartKind.SPEECH, lacks_speech)) if lacks
    )


def _calls(sound_s: float) -> int:
    """How many calls write a reply down."""
    return count_parts(sound_s).expected if sound_s > LONGEST_S else 1


def _spoken_s(there: Outcome | None, conversation: Conversation, turn: Turn) -> Range:
    """How long a reply is that is there, or will be."""
    if there is not None and there.audio_duration_s is not None:
        return Range.exactly(there.audio_duration_s)
    longest = conversation.item.max_completion_tokens or BOUND_TOKENS
    longest_s = conversation.calls(turn).high * longest / AUDIO_OUT_TOKENS_PER_S
    return Range(0.0, min(conversation.reply_s(turn), longest_s), longest_s)
