"""What this run sends: every recorded input against what the job asks for today. Nothing is sent here.

| an input's turn | is |
|---|---|
| never sent | sent |
| succeeded, same fingerprint | done |
| succeeded, its own input, prompt or row settings changed | sent again |
| succeeded, the *job's* settings changed | the run stops and says what changed; `--redo` or `--keep` decides |
| failed for a reason that may pass | sent again |
| failed for good | left, until `retry` |
| unknown (sent, end not seen) | sent again at most twice (`--on-unknown retry`), or left |
| unfinished (paid for, and not worked on yet) | finished from its body before the plan is made, else left |
| refused | never sent |

A reviewer's marks come before all of these: `review_rules.py`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from audiobatch.config.jobspec import placeholders
from audiobatch.config.transcription_rules import transcription_models, wanted_of
from audiobatch.errors import RETRYABLE, ConfigError, ErrorType, InputError
from audiobatch.inputs.sound_settings import sent_s, trimmed_s, why_unsuitable
from audiobatch.ledger.queries import Unchanged
from audiobatch.limits.retry import MAX_UNKNOWN
from audiobatch.model import Status
from audiobatch.planning.items import build_item, digest, job_settings
from audiobatch.planning.review_rules import Rules, is_done

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.transcription_rules import Written
    from audiobatch.ledger.ledger import Ledger, Recorded
    from audiobatch.model import Item, Outcome, Turn

#: Past this many, items share a shard: a task runner that records the state of each shard can follow so many.
MAX_SHARDS = 500
_BATCH = 1000
_T = TypeVar("_T")
_FEWEST_SHARDS_AT_ONCE = 2


class Decision(StrEnum):
    SEND = "send"
    DONE = "done"
    REFUSED = "refused"
    FINAL = "final"
    UNKNOWN = "unknown"
    UNFINISHED = "unfinished"
    CHANGED = "changed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """What `retry` sends: turns whose recorded status and error type are among these; None: any.

    Attributes:
        reviews: marks; where any is given, they alone decide, and just the marked turns are sent.
        with_notes: each with its mark's note.
    """

    statuses: frozenset[Status] = frozenset({Status.FAILED, Status.UNKNOWN})
    error_types: frozenset[ErrorType] | None = None
    reviews: frozenset[str] = frozenset()
    with_notes: bool = False

    def wants(self, outcome: Outcome) -> bool:
        return outcome.status in self.statuses and (
            self.error_types is None or outcome.error_type in self.error_types
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The items that one task sends: a stretch of the run's queue by position, both ends included."""

    number: int
    first_position: int
    last_position: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        items: inputs that discovery saw.
        to_send: items on this run's queue.
        done: items with every turn done.
        refused: inputs that cannot be sent.
        final: items whose failure only `retry` sends again.
        unknown: items left because their call's end was not seen.
        unfinished: items left because their reply could not be worked on, here and now.
        rejected: items left because a reviewer does not want them.
        approved: items that would be sent, but for results that a reviewer approved.
        held_back: items that `--limit` leaves for a later run.
        deployments: deployments that rows name, beside the job's own.
        input_audio_s: sound in the recordings to be sent.
        trimmed_s: silence in them that is left out, and is not in `input_audio_s`.
    """

    items: int
    to_send: int
    done: int
    refused: int
    final: int
    unknown: int
    held_back: int
    deployments: frozenset[str]
    input_audio_s: float
    shards: tuple[Shard, ...]
    shards_at_once: int
    rejected: int = 0
    approved: int = 0
    trimmed_s: float = 0.0
    unfinished: int = 0


EMPTY_PLAN = Plan(
    items=0,
    to_send=0,
    done=0,
    refused=0,
    final=0,
    unknown=0,
    held_back=0,
    deployments=frozenset(),
    input_audio_s=0.0,
    shards=(),
    shards_at_once=1,
)
#: The note of which deployments the rows of a queue name.
_DEPLOYMENTS_NOTE = "deployments"


def deployments_noted(ledger: Ledger) -> frozenset[str]:
    """Deployments that rows name, as the last plan found them."""
    return frozenset(filter(None, ledger.noted(_DEPLOYMENTS_NOTE).split("\n")))


def rules_of(spec: JobSpec, retry: Retry | None) -> Rules:
    """What a run may replace."""
    if retry is None:
        return Rules(force=spec.force)
    return Rules(reviews=retry.reviews, with_notes=retry.with_notes, force=spec.force)


def settings_key(spec: JobSpec) -> str:
    return digest(job_settings(spec))


def make_plan(ledger: Ledger, spec: JobSpec, queue_id: str, *, retry: Retry | None = None) -> Plan:
    """Decide for each input that was found, and put what is to be sent on the queue.

    Runs that work together share a queue, and each plans: what one has put there stays as it is.

    Raises:
        ConfigError: the job's settings changed for results that are there, and neither `redo` nor `keep` says
            what to do; or a prompt asks for a column that no input has.
    """
    planning = _Planning(spec, settings_key(spec), ledger.unknown_counts(), retry)
    if transcription_models(spec) and retry is None:
        planning.written = ledger.written_down()
    done = _done_for_certain(spec, retry)
    if done is not None:
        planning.counts[Decision.DONE] = ledger.count_unchanged(queue_id, done)
    for chunk in _batched(ledger.recorded(queue_id, but=done), _BATCH):
        to_send = [(one.source.item_id, one.source.position) for one in chunk if planning.sends(one)]
        ledger.queue.fill(to_send, queue_id)
        if planning.kept:
            ledger.keep_as(planning.kept)
            planning.kept = []
    if planning.changed and not (spec.redo or spec.keep):
        raise ConfigError(_what_changed(ledger, spec, planning))
    if planning.bad_prompt and planning.counts[Decision.SEND] + planning.counts[Decision.DONE] == 0:
        raise ConfigError(planning.bad_prompt)
    if planning.deployments and ledger.is_shared:
        ledger.note(_DEPLOYMENTS_NOTE, "\n".join(sorted(planning.deployments | deployments_noted(ledger))))
    if ledger.is_shared:
        ledger.queue.hold_for_others()
    positions = ledger.queue.positions()
    shards = shards_of(positions)
    size = shards[0].size if shards else 1
    return Plan(
        items=planning.counts.total(),
        to_send=len(positions),
        done=planning.counts[Decision.DONE],
        refused=planning.counts[Decision.REFUSED],
        final=planning.counts[Decision.FINAL],
        unknown=planning.counts[Decision.UNKNOWN],
        unfinished=planning.counts[Decision.UNFINISHED],
        held_back=planning.held_back,
        deployments=frozenset(planning.deployments),
        input_audio_s=planning.input_audio_s,
        shards=shards,
        rejected=planning.counts[Decision.REJECTED],
        approved=planning.approved,
        trimmed_s=planning.trimmed_s,
        shards_at_once=max(_FEWEST_SHARDS_AT_ONCE, math.ceil(spec.concurrency_ceiling / size) + 1),
    )


def _done_for_certain(spec: JobSpec, retry: Retry | None) -> Unchanged | None:
    """Which inputs the database alone can say are done: most of them, in a large folder that is run again.

    Their fingerprints need not be worked out, since nothing that they are made of has changed. None where more
    than the fingerprint counts: a retry, words to be written down, prompts that name columns.
    """
    asked = spec.turn_specs()
    if retry is not None or transcription_models(spec) or any(placeholders(turn.prompt) for turn in asked):
        return None
    return Unchanged(settings_key=settings_key(spec), turns=len(asked))


def plan_again(
    ledger: Ledger, spec: JobSpec, retry: Retry | None, recorded: Iterable[Recorded]
) -> dict[str, Decision]:
    """What is to be done with items whose run fell silent, now that its calls have an end."""
    planning = _Planning(spec, settings_key(spec), ledger.unknown_counts(), retry)
    if transcription_models(spec) and retry is None:
        planning.written = ledger.written_down()
    decided: dict[str, Decision] = {}
    for one in recorded:
        decision, _ = planning.decide(one)
        if decision is Decision.CHANGED:
            decision = Decision.SEND if spec.redo else Decision.DONE
        decided[one.source.item_id] = decision
    return decided


class _Planning:
    """The pass over all inputs: decisions, counts, and what `--keep` accepts."""

    def __init__(
        self, spec: JobSpec, key: str, unknown: Mapping[tuple[str, int, str], int], retry: Retry | None
    ) -> None:
        self.spec = spec
        self.key = key
        self.unknown = unknown
        self.retry = retry
        self.rules = rules_of(spec, retry)
        self.approved = 0
        self.counts: Counter[Decision] = Counter()
        self.held_back = 0
        self.deployments: set[str] = set()
        self.input_audio_s = self.trimmed_s = 0.0
        self.changed: Outcome | None = None
        self.changed_count = 0
        self.bad_prompt = ""
        self.kept: list[tuple[str, int, str]] = []
        self.written: AbstractSet[Written] | None = None

    def sends(self, one: Recorded) -> bool:
        """Decide and count one input; whether it goes on this run's queue."""
        decision, item = self.decide(one)
        if decision is Decision.CHANGED:
            self.changed_count += 1
            decision = Decision.SEND if self.spec.redo else Decision.DONE
        self.counts[decision] += 1
        if decision is not Decision.SEND:
            return False
        if self.spec.limit is not None and self.counts[Decision.SEND] > self.spec.limit:
            self.held_back += 1
            return False
        if item and item.deployment:
            self.deployments.add(item.deployment)
        if one.source.media is not None:
            self.trimmed_s += trimmed_s(one.source, self.spec)
            self.input_audio_s += sent_s(one.source, self.spec)
        return True

    def decide(self, one: Recorded) -> tuple[Decision, Item | None]:
        if one.source.refusal or (why_unsuitable(one.source, self.spec) and not one.outcomes):
            return Decision.REFUSED, None
        try:
            item = build_item(one.source, self.spec)
        except InputError as refused:
            self.bad_prompt = self.bad_prompt or refused.message
            return Decision.REFUSED, None
        left: Decision = Decision.DONE
        for turn in item.turns:
            outcome = one.outcomes.get(turn.number)
            if self.rules.stands(one, turn):
                left = self._left(one, turn, outcome) or left
                continue
            decision = Decision.SEND if self.rules.reviews else self._turn(one, turn, outcome)
            if decision is not Decision.DONE:
                return self._only_retried(decision, outcome), item
        if left is Decision.DONE and self._lacks_words(one):
            return Decision.SEND, item
        return self._only_retried(left, None), item

    def _lacks_words(self, one: Recorded) -> bool:
        """Whether the words of a result that is done are still to be written down."""
        written = self.written
        if written is None:
            return False
        return any(wanted_of(outcome, one.source, self.spec, written) for outcome in one.outcomes.values())

    def _left(self, one: Recorded, turn: Turn, outcome: Outcome | None) -> Decision | None:
        """Why a turn that is not done stands all the same: a reviewer's mark; None where it is done."""
        if self.rules.reviews or is_done(outcome, turn, one.kept_as.get(turn.number)):
            return None
        if one.reviews[turn.number].review == "reject":
            return Decision.REJECTED
        self.approved += 1
        return None

    def _only_retried(self, decision: Decision, outcome: Outcome | None) -> Decision:
        """`retry` sends what it was asked to, whether final or not, and nothing else."""
        if self.retry is None or self.retry.reviews:
            return decision
        if outcome is not None and self.retry.wants(outcome):
            return Decision.SEND
        if decision is Decision.UNKNOWN and Status.UNKNOWN in self.retry.statuses:
            return Decision.SEND  # a redo's: the row still has the earlier result
        return Decision.DONE if decision in {Decision.SEND, Decision.CHANGED} else decision

    def _turn(self, one: Recorded, turn: Turn, outcome: Outcome | None) -> Decision:
        if outcome is None:
            return Decision.SEND
        same = turn.fingerprint in {outcome.fingerprint, one.kept_as.get(turn.number)}
        match outcome.status:
            case Status.SUCCEEDED if same:
                return Decision.DONE
            case Status.SUCCEEDED:
                changed = self._changed(one, turn, outcome)
                sent = changed is Decision.SEND or (changed is Decision.CHANGED and self.spec.redo)
                return Decision.UNKNOWN if sent and self._given_up(one, turn) else changed
            case Status.FAILED if same and outcome.error_type not in RETRYABLE:
                return Decision.FINAL
            case Status.PENDING if outcome.error_type is ErrorType.UNFINISHED and not self.spec.redo:
                return Decision.UNFINISHED
            case Status.UNKNOWN if same and self._given_up(one, turn):
                return Decision.UNKNOWN
            case _:
                return Decision.SEND

    def _given_up(self, one: Recorded, turn: Turn) -> bool:
        """Whether calls for this very request have an unknown end, and no more are to be made."""
        calls = self.unknown.get((one.source.item_id, turn.number, turn.fingerprint), 0)
        return calls > 0 and (self.spec.on_unknown == "skip" or calls > MAX_UNKNOWN)

    def _changed(self, one: Recorded, turn: Turn, outcome: Outcome) -> Decision:
        """A result whose fingerprint no longer holds: by its own input's doing, or by the job's?"""
        own = outcome.settings_key == self.key or outcome.input_sha256 != one.source.sha256
        if own:
            return Decision.SEND
        self.changed = self.changed or outcome
        if self.spec.keep:
            self.kept.append((one.source.item_id, turn.number, turn.fingerprint))
            return Decision.DONE
        return Decision.CHANGED


def shards_of(positions: list[int]) -> tuple[Shard, ...]:
    """The queue cut into stretches: an item a shard while there are few, never more than `MAX_SHARDS`."""
    size = max(1, math.ceil(len(positions) / MAX_SHARDS))
    return tuple(
        Shard(number=number, first_position=stretch[0], last_position=stretch[-1], size=len(stretch))
        for number, stretch in enumerate(_batched(positions, size), 1)
    )


def _what_changed(ledger: Ledger, spec: JobSpec, planning: _Planning) -> str:
    assert planning.changed is not None
    before = ledger.settings_value(planning.changed.settings_key) or {}
    now = job_settings(spec)
    names = (*now, *(name for name in before if name not in now))
    lines = [
        f"  {name.replace('_', '-')}: {_short(was)} → {_short(is_now)}"
        for name in names
        if (was := _in_words(before.get(name))) != (is_now := _in_words(now.get(name)))
    ]
    return "\n".join(
        [
            f"the job's settings changed since {planning.changed_count:,} results in this folder were made:",
            *(lines or ["  (settings of an earlier version)"]),
            "Say --redo to make them again, --keep to leave them as they are, or name another --output.",
        ]
    )


def _in_words(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, list) and not any(value)):
        return "(none)"
    return " | ".join(map(_in_words, value)) if isinstance(value, list) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def _batched(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(values)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
