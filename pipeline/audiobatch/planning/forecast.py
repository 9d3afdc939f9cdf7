"""Forecast what a run would send and cost: `audiobatch plan`.

Inputs are found and probed, and every decision is made, on a copy of the folder's ledger in a temporary folder.
Each amount has three figures:

    expected   replies as long as this job's earlier ones, or as the first guess of `tokens.py`
    low        a word or two in a reply
    high       every reply as long as it may be: `max_completion_tokens`, or 4096 tokens (3.4 min of speech)

The actual amount lies between low and high, unless calls have to be repeated. The calls of `--transcribe-inputs`
and `--verify-speech` are included.
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
from audiobatch.config.transcription_rules import (
    MAX_TRANSCRIPTION_S,
    missing_transcripts,
    transcription_models,
)
from audiobatch.errors import ConfigError, InputError
from audiobatch.inputs.discover import Discovery
from audiobatch.inputs.sound_settings import why_unsuitable
from audiobatch.ledger.ledger import ledger_copy
from audiobatch.model import PartKind, SourceKind, Status, Usage
from audiobatch.planning.disk_space import bytes_per_item
from audiobatch.planning.items import build_item
from audiobatch.planning.plan import batched, make_plan, rules_of
from audiobatch.planning.tokens import (
    BILLED_AUDIO_SHARE,
    FIGURES,
    Conversation,
    Range,
    ReplySizes,
    transcript_tokens,
)
from audiobatch.planning.worst_case import BOUND_TOKENS
from audiobatch.storage.output import output_folder, output_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from decimal import Decimal

    from audiobatch import address
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.config.transcription_rules import TranscriptKey
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.ledger.reader import Recorded
    from audiobatch.model import Item, Outcome, Source, Turn
    from audiobatch.planning.plan import Plan
    from audiobatch.planning.review_rules import Rules
    from audiobatch.planning.tokens import TurnTokens

#: Days before a model's retirement from which the plan mentions it.
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
        refused: reasons by id of inputs that would be refused.
        calls: calls for replies, if none has to be repeated.
        transcription_calls: calls for transcripts, not in `calls`; `cost_usd` includes them, `tokens` does not.
        trimmed_s: seconds of silence that are not sent.
        trimmed_usd: what sending them would cost; None where the price is not known.
        tokens: by kind.
        cost_usd: by figure (low, expected, high); None where a price is not known.
        time_s: seconds that the job's quotas make it take; None where it has none.
        disk_bytes: expected size of the results.
        free_bytes: free space on the output's disk; None where it is not known.
        earlier_replies: how many earlier replies the expected figures are based on.
        deployments: where the calls can go.
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
    transcription_calls: int
    deployments: tuple[PlannedDeployment, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        plain = ("output", "items", "to_send", "done", "final", "unknown", "held_back", "calls")
        return {
            **{name: getattr(self, name) for name in plain},
            "word_calls": self.transcription_calls,
            "refused": [{"item_id": item_id, "reason": reason} for item_id, reason in self.refused.items()],
            "input_audio_s": round(self.input_audio_s, 3),
            "trimmed_s": round(self.trimmed_s, 3),
            "trimmed_usd": None if self.trimmed_usd is None else float(self.trimmed_usd),
            "tokens": {
                kind: {figure: round(getattr(amount, figure)) for figure in FIGURES}
                for kind, amount in self.tokens.items()
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
                        name: getattr(deployment, name)
                        for name in ("name", "provider", "model", "priority", "price_known")
                    },
                    "retires": deployment.retires.isoformat() if deployment.retires else None,
                    "retires_in_days": deployment.retires_in_days,
                }
                for deployment in self.deployments
            ],
        }


def forecast(spec: JobSpec, *, today: date | None = None) -> Forecast:
    """Plan the job without sending anything, and without changing its output folder.

    Raises:
        ConfigError: a run would stop with the same message.
    """
    settings.check_service(spec)
    if not spec.inputs or (spec.output is None and output_name(spec.inputs) is None):
        raise ConfigError("name the inputs to plan for, and --output where there are several")
    output = output_folder(spec)
    with (
        tempfile.TemporaryDirectory(prefix="audiobatch-plan-") as folder,
        ledger_copy(output.ledger, output.address, Path(folder)) as ledger,
    ):
        ledger.queue.clear()
        _discover(spec, ledger)
        plan = make_plan(ledger, spec, _RUN_ID)
        targets = targets_of(spec, plan.deployments, with_credentials=False)
        check_prices(spec, (*targets, *transcription_targets(spec, targets[0])))
        day = today or datetime.now(UTC).date()
        deployments = tuple(_planned_deployment(target, day) for target in targets)
        return _forecast(spec, ledger, plan, targets, output=output.location, deployments=deployments)


def _discover(spec: JobSpec, ledger: Ledger) -> None:
    stdin = sys.stdin.buffer if "-" in spec.inputs else None
    for batch in batched(Discovery(spec, ledger.reader.known_files(), stdin).sources(), 500):
        ledger.writer.put_sources(batch, _RUN_ID)


def _forecast(
    spec: JobSpec,
    ledger: Ledger,
    plan: Plan,
    targets: Sequence[Target],
    *,
    output: address.Location,
    deployments: tuple[PlannedDeployment, ...],
) -> Forecast:
    sizes = ReplySizes()
    refused: dict[str, str] = {}
    earlier = 0
    rules = rules_of(spec, None)
    for record in ledger.reader.recorded(_RUN_ID):
        for outcome in record.outcomes.values():
            if outcome.status is Status.SUCCEEDED:
                sizes.add(outcome)
                earlier += 1
        if reason := _refusal(record, spec):
            refused[record.source.item_id] = reason
    replies = ReplyTotals(now_s=time.time())
    transcripts = TranscriptTotals(
        existing=ledger.reader.transcribed() if transcription_models(spec) else frozenset()
    )
    for record in ledger.reader.recorded_to_do():
        item = build_item(record.source, spec)
        replies.add(record, item, rules, sizes, spec)
        transcripts.add(record, item, rules, sizes, spec)
    reply_usd = replies.cost(targets)
    transcript_usd = transcripts.cost(transcription_targets(spec, targets[0]))
    return Forecast(
        output=str(output),
        items=plan.items,
        to_send=plan.to_send,
        done=plan.done,
        refused=refused,
        final=plan.final,
        unknown=plan.unknown,
        held_back=plan.held_back,
        calls=replies.calls,
        input_audio_s=plan.input_audio_s,
        trimmed_s=plan.trimmed_s,
        trimmed_usd=targets[0].cost_usd(
            Usage(input_audio_tokens=round(plan.trimmed_s * AUDIO_IN_TOKENS_PER_S))
        ),
        tokens=replies.tokens,
        cost_usd=None
        if reply_usd is None or transcript_usd is None
        else {figure: cost + transcript_usd.get(figure, 0) for figure, cost in reply_usd.items()},
        time_s=replies.time_s(targets),
        disk_bytes=round(plan.to_send * bytes_per_item(spec, sizes.audio_s)),
        free_bytes=_free_bytes(output),
        earlier_replies=earlier,
        transcription_calls=transcripts.calls,
        deployments=deployments,
    )


def _refusal(record: Recorded, spec: JobSpec) -> str:
    if reason := record.source.refusal or ("" if record.outcomes else why_unsuitable(record.source, spec)):
        return reason
    try:
        build_item(record.source, spec)
    except InputError as refused:
        return refused.message
    return ""


def _planned_deployment(target: Target, today: date) -> PlannedDeployment:
    retires = target.price.retires if target.price else None
    return PlannedDeployment(
        name=target.name,
        provider=target.provider,
        model=target.model,
        priority=target.priority,
        price_known=target.price is not None,
        retires=retires,
        retires_in_days=(retires - today).days if retires else None,
    )


def _free_bytes(output: address.Location) -> int | None:
    if not isinstance(output, Path):
        return None
    folder = output.resolve()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


TOKEN_KINDS = ("input_text_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens")


@dataclass(slots=True)
class ReplyTotals:
    """The calls for replies and their tokens, summed up item by item.

    Attributes:
        now_s: the time in epoch seconds, at which audio ids of earlier replies are valid or not.
        tokens: by kind.
        session_transcribed_s: seconds of recordings that are transcribed in their Realtime sessions.
    """

    now_s: float
    calls: int = 0
    tokens: dict[str, Range] = field(default_factory=lambda: dict.fromkeys(TOKEN_KINDS, Range()))
    session_transcribed_s: Range = field(default_factory=Range)

    def add(self, record: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """Add the turns of an item that would be sent."""
        conversation = Conversation(item=item, sizes=sizes, spec=spec, now_s=self.now_s)
        for turn in item.turns:
            outcome = record.outcomes.get(turn.number)
            if not rules.leaves(record, turn):
                tokens = conversation.tokens(turn)
                self._count(tokens)
                self.calls += conversation.parts.expected if turn.number == 1 else 1
                if spec.transcription_model and turn.number == 1:
                    self.session_transcribed_s += BILLED_AUDIO_SHARE * conversation.heard_s
                conversation.add_reply(turn, tokens)
            elif outcome is None or outcome.status is not Status.SUCCEEDED:
                return  # no turn can follow it
            else:
                conversation.add_earlier(turn, outcome)

    def _count(self, tokens: TurnTokens) -> None:
        for kind in TOKEN_KINDS:
            added: Range = getattr(tokens, kind)
            self.tokens[kind] += added

    def usage(self, figure: str) -> Usage:
        """Return the tokens of all calls by one of the `FIGURES`."""
        return Usage(**{kind: round(getattr(amount, figure)) for kind, amount in self.tokens.items()})

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """Return the low cost at the cheapest target, the high at the most expensive, the expected at the first."""
        costs = {figure: [self._cost(figure, target) for target in targets] for figure in FIGURES}
        known = {figure: [cost for cost in each if cost is not None] for figure, each in costs.items()}
        if any(len(each) < len(targets) for each in known.values()):
            return None
        return {"low": min(known["low"]), "expected": known["expected"][0], "high": max(known["high"])}

    def _cost(self, figure: str, target: Target) -> Decimal | None:
        audio = self.session_transcribed_s * AUDIO_IN_TOKENS_PER_S
        text = transcript_tokens(self.session_transcribed_s)
        transcription = Usage(
            input_audio_tokens=round(getattr(audio, figure)),
            output_text_tokens=round(getattr(text, figure)),
        )
        billed = transcription if self.session_transcribed_s.high else None
        return total_usd((target.cost_usd(self.usage(figure)), target.transcription_usd(billed)))

    def time_s(self, targets: Sequence[Target]) -> float | None:
        """Return the seconds that the targets' quotas make the job take; None where a target has no quota."""
        tokens = sum(amount.expected for amount in self.tokens.values())
        rpm = [target.rpm or 0 for target in targets]
        tpm = [target.tpm or 0 for target in targets]
        times = []
        if all(rpm):
            times.append(self.calls * 60 / sum(rpm))
        if all(tpm):
            times.append(tokens * 60 / sum(tpm))
        return max(times) if times else None


#: Audio that is transcribed, as a share of what is expected.
_AUDIO_SHARE = Range(0.3, 1.0, 1.15)


@dataclass(slots=True)
class TranscriptTotals:
    """The calls of `--transcribe-inputs` and `--verify-speech` and their tokens, summed up item by item.

    Attributes:
        calls: calls for transcripts, if none has to be repeated.
        existing: transcripts that the ledger has.
    """

    calls: int = 0
    existing: AbstractSet[TranscriptKey] = frozenset()
    _audio: dict[str, Range] = field(default_factory=dict)
    _text: dict[str, Range] = field(default_factory=dict)

    def add(self, record: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """Add the transcripts of every turn's result, existing and future ones."""
        conversation = Conversation(item=item, sizes=sizes, spec=spec, now_s=0.0)
        for turn in item.turns:
            is_left = rules.leaves(record, turn)
            existing = record.outcomes.get(turn.number) if is_left else None
            if existing is not None:
                missing = missing_transcripts(existing, record.source, spec, self.existing)
            else:
                missing = () if is_left else _future_transcripts(turn, record.source, spec)
            if spec.transcribe_inputs and PartKind.INPUT in missing:
                in_session = existing is None and spec.transcription_model is not None
                self._count_input(spec.transcribe_inputs, conversation, in_session=in_session)
            if spec.verify_speech and PartKind.SPEECH in missing:
                spoken_s = _spoken_s(existing, conversation, turn)
                self._count(spec.verify_speech, spoken_s, _calls(spoken_s.expected))

    def _count_input(self, model: str, conversation: Conversation, *, in_session: bool) -> None:
        """Count a recording's transcript, which is needed only where a session that transcribes gives none."""
        parts, heard_s = conversation.parts, conversation.heard_s
        calls = (
            parts.expected
            if heard_s <= parts.expected * MAX_TRANSCRIPTION_S
            else count_parts(heard_s).expected
        )
        low_s = 0.0 if in_session else heard_s
        self._count(model, Range(low_s, low_s, heard_s + parts.repeated_s), calls, are_likely=not in_session)

    def _count(self, model: str, audio_s: Range, calls: int, *, are_likely: bool = True) -> None:
        self.calls += calls if are_likely else 0
        heard_s = audio_s * _AUDIO_SHARE
        text = transcript_tokens(audio_s).at_most(calls * BOUND_TOKENS)
        self._audio[model] = self._audio.get(model, Range()) + heard_s * AUDIO_IN_TOKENS_PER_S
        self._text[model] = self._text.get(model, Range()) + text

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """Return the cost by figure; None where a price is not known.

        Args:
            targets: the targets that transcribe, named by their models.
        """
        by_model = {target.name: target for target in targets}
        costs = {
            figure: total_usd(by_model[model].cost_usd(self._usage(model, figure)) for model in self._audio)
            for figure in FIGURES
        }
        known = {figure: cost for figure, cost in costs.items() if cost is not None}
        return known if len(known) == len(costs) else None

    def _usage(self, model: str, figure: str) -> Usage:
        return Usage(
            input_audio_tokens=math.ceil(getattr(self._audio[model], figure)),
            output_text_tokens=math.ceil(getattr(self._text[model], figure)),
        )


def _future_transcripts(turn: Turn, source: Source, spec: JobSpec) -> tuple[PartKind, ...]:
    """Return the transcripts that a turn will need once it has a reply."""
    needs_input = spec.transcribe_inputs and turn.number == 1 and source.kind is SourceKind.RECORDING
    needs_speech = spec.verify_speech and turn.wants_audio
    return tuple(
        kind for kind, needed in ((PartKind.INPUT, needs_input), (PartKind.SPEECH, needs_speech)) if needed
    )


def _calls(audio_s: float) -> int:
    """Return how many calls transcribe a reply of this length."""
    return count_parts(audio_s).expected if audio_s > MAX_TRANSCRIPTION_S else 1


def _spoken_s(existing: Outcome | None, conversation: Conversation, turn: Turn) -> Range:
    """Return the seconds of an existing or a future reply."""
    if existing is not None and existing.audio_duration_s is not None:
        return Range.exactly(existing.audio_duration_s)
    longest = conversation.item.max_completion_tokens or BOUND_TOKENS
    longest_s = conversation.calls(turn).high * longest / AUDIO_OUT_TOKENS_PER_S
    return Range(0.0, min(conversation.reply_s(turn), longest_s), longest_s)
