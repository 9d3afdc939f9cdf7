"""Decide what this run sends: compare every recorded input with what the job asks for now. Nothing is sent here.

| a turn of an input | decision |
|---|---|
| never sent | sent |
| succeeded, same fingerprint | done |
| succeeded, its own input, prompt or row settings changed | sent again |
| succeeded, the *job's* settings changed | the run stops and says what changed; `--redo` or `--keep` decides |
| failed with a retryable error | sent again |
| failed with a final error | left, until `retry` |
| unknown (the call's end was not seen) | sent again at most twice (`--on-unknown retry`), or left |
| unfinished (paid for, its body not processed yet) | finished from the body before planning, else left |
| refused | never sent |

A reviewer's marks take precedence: `review_rules.py`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from audiobatch.config.jobspec import placeholders
from audiobatch.config.transcription_rules import missing_transcripts, transcription_models
from audiobatch.errors import RETRYABLE, ConfigError, ErrorType, InputError
from audiobatch.inputs.sound_settings import sent_s, trimmed_s, why_unsuitable
from audiobatch.ledger.reader import Unchanged
from audiobatch.limits.retry import MAX_UNKNOWN
from audiobatch.model import Status
from audiobatch.planning.items import build_item, digest, job_settings
from audiobatch.planning.review_rules import Rules, is_done

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.transcription_rules import TranscriptKey
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.ledger.reader import Recorded
    from audiobatch.model import Item, Outcome, Turn

#: Past this many, items share a shard: a task runner that records the state of each shard can follow so many.
MAX_SHARDS = 500
_BATCH = 1000
_T = TypeVar("_T")
_FEWEST_SHARDS_AT_ONCE = 2


class Decision(StrEnum):
    """What the plan decides for an input."""

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
    """What `retry` sends: turns with one of these statuses and error types; `error_types` None: any.

    Attributes:
        reviews: marks; if there are any, they alone decide, and only turns with these marks are sent.
        with_notes: send each turn with its mark's note.
    """

    statuses: frozenset[Status] = frozenset({Status.FAILED, Status.UNKNOWN})
    error_types: frozenset[ErrorType] | None = None
    reviews: frozenset[str] = frozenset()
    with_notes: bool = False

    def wants(self, outcome: Outcome) -> bool:
        """Whether a turn with this outcome is sent again."""
        return outcome.status in self.statuses and (
            self.error_types is None or outcome.error_type in self.error_types
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The items that one task sends: a range of the run's queue by position, both ends included."""

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
        final: items with an error that only `retry` sends again.
        unknown: items left because their call's end was not seen.
        unfinished: items left because their reply could not be processed.
        rejected: items left because a reviewer rejected them.
        approved: items that would be sent if a reviewer had not approved their results.
        held_back: items that `--limit` leaves for a later run.
        deployments: deployments that rows name, beside the job's own.
        input_audio_s: seconds of audio in the recordings to send.
        trimmed_s: seconds of silence that are left out of them, not counted in `input_audio_s`.
        shards_at_once: how many shards keep all calls busy.
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
#: The ledger's note of the deployments that rows name.
_DEPLOYMENTS_NOTE = "deployments"


def deployments_noted(ledger: Ledger) -> frozenset[str]:
    """Return the deployments that rows name, as the last plan noted them."""
    return frozenset(filter(None, ledger.reader.note(_DEPLOYMENTS_NOTE).split("\n")))


def rules_of(spec: JobSpec, retry: Retry | None) -> Rules:
    """Return the review rules of a run."""
    if retry is None:
        return Rules(force=spec.force)
    return Rules(reviews=retry.reviews, with_notes=retry.with_notes, force=spec.force)


def settings_key(spec: JobSpec) -> str:
    """Return the digest of the job's settings that decide replies."""
    return digest(job_settings(spec))


def make_plan(ledger: Ledger, spec: JobSpec, queue_id: str, *, retry: Retry | None = None) -> Plan:
    """Decide for each input, and put those to send on the queue.

    Runs that work together share a queue, and each of them plans: an item that is on the queue already stays as it
    is.

    Raises:
        ConfigError: the job's settings changed for existing results, and neither `redo` nor `keep` says what to do;
            or a prompt names a column that no input has.
    """
    planning = _Planning(spec, settings_key(spec), ledger.reader.unknown_counts(), retry)
    if transcription_models(spec) and retry is None:
        planning.transcribed = ledger.reader.transcribed()
    done = _surely_done(spec, retry)
    if done is not None:
        planning.counts[Decision.DONE] = ledger.reader.count_unchanged(queue_id, done)
    for chunk in batched(ledger.reader.recorded(queue_id, exclude=done), _BATCH):
        to_send = [
            (record.source.item_id, record.source.position) for record in chunk if planning.add(record)
        ]
        ledger.queue.fill(to_send, queue_id)
        if planning.accepted:
            ledger.writer.accept_outcomes(planning.accepted)
            planning.accepted = []
    if planning.changed and not (spec.redo or spec.keep):
        raise ConfigError(_what_changed(ledger, spec, planning))
    if planning.bad_prompt and planning.counts[Decision.SEND] + planning.counts[Decision.DONE] == 0:
        raise ConfigError(planning.bad_prompt)
    if planning.deployments and ledger.is_shared:
        ledger.writer.put_note(
            _DEPLOYMENTS_NOTE, "\n".join(sorted(planning.deployments | deployments_noted(ledger)))
        )
    if ledger.is_shared:
        ledger.queue.reserve_for_silent_runs()
    positions = ledger.queue.positions()
    shards = _shards_of(positions)
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


def _surely_done(spec: JobSpec, retry: Retry | None) -> Unchanged | None:
    """Return the condition by which the database alone finds inputs that are done.

    Those are most inputs of a large folder that is run again. Their fingerprints need no computing, since nothing
    in them changed. None where more than the fingerprint decides: a retry, transcriptions, prompts that name
    columns.
    """
    turns = spec.turn_specs()
    if retry is not None or transcription_models(spec) or any(placeholders(turn.prompt) for turn in turns):
        return None
    return Unchanged(settings_key=settings_key(spec), turns=len(turns))


def replan(
    ledger: Ledger, spec: JobSpec, retry: Retry | None, recorded: Iterable[Recorded]
) -> dict[str, Decision]:
    """Decide again for items of a run that died, after its calls were settled."""
    planning = _Planning(spec, settings_key(spec), ledger.reader.unknown_counts(), retry)
    if transcription_models(spec) and retry is None:
        planning.transcribed = ledger.reader.transcribed()
    decided: dict[str, Decision] = {}
    for record in recorded:
        decision, _ = planning.decide(record)
        if decision is Decision.CHANGED:
            decision = Decision.SEND if spec.redo else Decision.DONE
        decided[record.source.item_id] = decision
    return decided


class _Planning:
    """One pass over all inputs: decisions, counts, and the results that `--keep` accepts."""

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
        self.accepted: list[tuple[str, int, str]] = []
        self.transcribed: AbstractSet[TranscriptKey] | None = None

    def add(self, record: Recorded) -> bool:
        """Decide for an input and count it; return whether it goes on this run's queue."""
        decision, item = self.decide(record)
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
        if record.source.media is not None:
            self.trimmed_s += trimmed_s(record.source, self.spec)
            self.input_audio_s += sent_s(record.source, self.spec)
        return True

    def decide(self, record: Recorded) -> tuple[Decision, Item | None]:
        """Decide for an input; return its item too, if it can be built."""
        if record.source.refusal or (why_unsuitable(record.source, self.spec) and not record.outcomes):
            return Decision.REFUSED, None
        try:
            item = build_item(record.source, self.spec)
        except InputError as refused:
            self.bad_prompt = self.bad_prompt or refused.message
            return Decision.REFUSED, None
        without_sending: Decision = Decision.DONE
        for turn in item.turns:
            outcome = record.outcomes.get(turn.number)
            if self.rules.leaves(record, turn):
                without_sending = self._by_mark(record, turn, outcome) or without_sending
                continue
            decision = Decision.SEND if self.rules.reviews else self._for_turn(record, turn, outcome)
            if decision is not Decision.DONE:
                return self._for_retry(decision, outcome), item
        if without_sending is Decision.DONE and self._lacks_transcript(record):
            return Decision.SEND, item
        return self._for_retry(without_sending, None), item

    def _lacks_transcript(self, record: Recorded) -> bool:
        """Whether a result that is done still has to be transcribed."""
        if self.transcribed is None:
            return False
        return any(
            missing_transcripts(outcome, record.source, self.spec, self.transcribed)
            for outcome in record.outcomes.values()
        )

    def _by_mark(self, record: Recorded, turn: Turn, outcome: Outcome | None) -> Decision | None:
        """Decide for a turn that is left because of a reviewer's mark; None where it is left because it is done."""
        if self.rules.reviews or is_done(outcome, turn, record.kept_as.get(turn.number)):
            return None
        if record.reviews[turn.number].review == "reject":
            return Decision.REJECTED
        self.approved += 1
        return None

    def _for_retry(self, decision: Decision, outcome: Outcome | None) -> Decision:
        """Apply `retry`: it sends the turns that it wants, final or not, and nothing else."""
        if self.retry is None or self.retry.reviews:
            return decision
        if outcome is not None and self.retry.wants(outcome):
            return Decision.SEND
        if decision is Decision.UNKNOWN and Status.UNKNOWN in self.retry.statuses:
            return Decision.SEND  # of a redo: the row still has the earlier result
        return Decision.DONE if decision in {Decision.SEND, Decision.CHANGED} else decision

    def _for_turn(self, record: Recorded, turn: Turn, outcome: Outcome | None) -> Decision:
        if outcome is None:
            return Decision.SEND
        same = turn.fingerprint in {outcome.fingerprint, record.kept_as.get(turn.number)}
        match outcome.status:
            case Status.SUCCEEDED if same:
                return Decision.DONE
            case Status.SUCCEEDED:
                changed = self._for_changed(record, turn, outcome)
                sent = changed is Decision.SEND or (changed is Decision.CHANGED and self.spec.redo)
                return Decision.UNKNOWN if sent and self._is_given_up(record, turn) else changed
            case Status.FAILED if same and outcome.error_type not in RETRYABLE:
                return Decision.FINAL
            case Status.PENDING if outcome.error_type is ErrorType.UNFINISHED and not self.spec.redo:
                return Decision.UNFINISHED
            case Status.UNKNOWN if same and self._is_given_up(record, turn):
                return Decision.UNKNOWN
            case _:
                return Decision.SEND

    def _is_given_up(self, record: Recorded, turn: Turn) -> bool:
        """Whether so many calls of this request have an unknown end that no more are made."""
        calls = self.unknown.get((record.source.item_id, turn.number, turn.fingerprint), 0)
        return calls > 0 and (self.spec.on_unknown == "skip" or calls > MAX_UNKNOWN)

    def _for_changed(self, record: Recorded, turn: Turn, outcome: Outcome) -> Decision:
        """Decide for a result with another fingerprint, by whether its input changed or the job's settings."""
        input_changed = outcome.settings_key == self.key or outcome.input_sha256 != record.source.sha256
        if input_changed:
            return Decision.SEND
        self.changed = self.changed or outcome
        if self.spec.keep:
            self.accepted.append((record.source.item_id, turn.number, turn.fingerprint))
            return Decision.DONE
        return Decision.CHANGED


def _shards_of(positions: list[int]) -> tuple[Shard, ...]:
    """Divide the queue into shards: of one item each, or of more so that there are at most `MAX_SHARDS`."""
    size = max(1, math.ceil(len(positions) / MAX_SHARDS))
    return tuple(
        Shard(number=number, first_position=batch[0], last_position=batch[-1], size=len(batch))
        for number, batch in enumerate(batched(positions, size), 1)
    )


def _what_changed(ledger: Ledger, spec: JobSpec, planning: _Planning) -> str:
    assert planning.changed is not None
    before = ledger.reader.settings_value(planning.changed.settings_key) or {}
    now = job_settings(spec)
    names = (*now, *(name for name in before if name not in now))
    lines = [
        f"  {name.replace('_', '-')}: {_short(was)} → {_short(is_now)}"
        for name in names
        if (was := _readable(before.get(name))) != (is_now := _readable(now.get(name)))
    ]
    return "\n".join(
        [
            f"the job's settings changed since {planning.changed_count:,} results in this folder were made:",
            *(lines or ["  (settings of an earlier version)"]),
            "Say --redo to make them again, --keep to leave them as they are, or name another --output.",
        ]
    )


def _readable(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, list) and not any(value)):
        return "(none)"
    return " | ".join(map(_readable, value)) if isinstance(value, list) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def batched(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of at most `size` values."""
    iterator = iter(values)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
