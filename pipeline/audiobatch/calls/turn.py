"""One turn of one item: called until it has an outcome, and the outcome recorded.

The order of writes never changes: intent on disk → call → files on disk → outcome on disk. A call holds its permit
until its outcome is recorded, so that after a kill no more calls have an unknown end than may be in flight.

`TurnCall` decides when a call is made and what its end means. What goes out, and where results are written, differs
between a whole turn, a part of a long recording and a transcription: that is the `TurnPolicy` it is handed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol, Self

from audiobatch.audio.finish import requested_format
from audiobatch.calls.answer_repair import (
    AnswerRepair,
    check_answer,
    record_answer,
    recorded_answer,
    send_again,
)
from audiobatch.config.jobspec import check_action
from audiobatch.config.prices import total_usd
from audiobatch.errors import (
    RETRYABLE,
    AudioBatchError,
    AudioIdGone,
    BadReply,
    BudgetReached,
    ContentFiltered,
    DeploymentFatal,
    Disconnected,
    OutcomeUnknown,
    RequestRejected,
    StorageError,
    Unfinished,
    shown,
    working_on_reply,
)
from audiobatch.ledger.rows import Attempt, AttemptEnd
from audiobatch.limits.pool import NoDeployment, Stopping
from audiobatch.limits.retry import AskAgain, Deferred, Tries, retrying
from audiobatch.model import (
    CostBasis,
    Outcome,
    Request,
    Status,
    basis_of,
    next_version,
    total_usage,
    weakest_basis,
)
from audiobatch.planning.review_rules import system_of, text_of
from audiobatch.planning.tokens import estimated_usd
from audiobatch.stop import StopReason
from audiobatch.transports.reply_memory import MEMORY
from audiobatch.transports.stored_body import body_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from audiobatch.calls.context import CallContext
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.limits.limiter import CallTokens
    from audiobatch.limits.pool import Permit
    from audiobatch.model import AudioPart, Check, Exchange, Item, Reply, Turn, Usage

log = logging.getLogger(__name__)

#: Errors after which the call was perhaps charged, although it brought no reply.
_PERHAPS_BILLED = (OutcomeUnknown, BadReply, ContentFiltered, Unfinished)
#: A refusal that is charged: the service has read the prompt. Source: Azure OpenAI, "Plan to manage costs" (a 400
#: for a content filter or an input limit), 2026-11-20.
_TOO_LONG = "context_length_exceeded"


class TurnPolicy(Protocol):
    """What a call is made for: which request goes out, and where its results are written.

    Every method that records is run to its end, whatever happens to its caller (`CallContext.settle`).
    """

    @property
    def part(self) -> int | None:
        """The part of the turn, from 1; None: the whole."""

    def build_request(self, request: Request) -> Request:
        """Make the request that goes out from that of the whole turn."""

    def error_message(self, error: AudioBatchError) -> str:
        """Return what the manifest says of an error."""

    async def record(self, reply: Reply, outcome: Outcome, end: AttemptEnd) -> Outcome:
        """Write the reply's files, then the outcome with the end of its call.

        Raises:
            BadReply: the audio is unusable; nothing is recorded.
            StorageError: the output cannot be written; the reply is in the spool.
        """

    async def spool(self, reply: Reply, outcome: Outcome, end: AttemptEnd, cause: StorageError) -> None:
        """Put a reply into the spool that was not recorded, because the output could not be written."""

    async def record_failure(self, outcome: Outcome, end: AttemptEnd | None, raw: bytes) -> Outcome:
        """Record a turn that failed, with the body that was wrong; `end` is None where it is recorded already."""

    async def record_unfinished(self, outcome: Outcome, end: AttemptEnd, raw: bytes) -> Outcome:
        """Store the body of a paid reply that this machine could not process, for the next run to finish."""


@dataclass(slots=True, kw_only=True)
class TurnCost:
    """The tokens and cost of all replies to one turn.

    Attributes:
        usage: None while no reply stated any.
        cost_usd: None where no reply came, or the cost of one of them is unknown.
        basis: the weakest basis of all replies; None where no reply came.
    """

    usage: Usage | None = None
    cost_usd: Decimal | None = None
    basis: CostBasis | None = None
    _any: bool = False

    @classmethod
    def of(cls, outcome: Outcome | None) -> Self:
        """Return the cost of a recorded reply; zero without one."""
        if outcome is None:
            return cls()
        return cls(usage=outcome.usage, cost_usd=outcome.cost_usd, basis=basis_of(outcome), _any=True)

    def add(self, usage: Usage | None, cost_usd: Decimal | None, basis: CostBasis) -> None:
        """Add one more reply; None: its tokens, or its cost, are unknown."""
        before = self.cost_usd if self._any else Decimal(0)
        self.cost_usd = total_usd((before, cost_usd))
        self.usage = total_usage((self.usage, usage))
        self.basis = weakest_basis((self.basis, CostBasis.UNKNOWN if cost_usd is None else basis))
        self._any = True

    def stated_in(self, outcome: Outcome) -> Outcome:
        """Return the outcome with these tokens and this cost."""
        return replace(outcome, usage=self.usage, cost_usd=self.cost_usd, cost_basis=self.basis)


@dataclass(slots=True, kw_only=True)
class _CallCost:
    """What one call cost, as the pool learns it when the permit is released.

    Attributes:
        tokens: as the service counted them; None: it did not say.
        cost_usd: None: perhaps billed, the worst case stays reserved.
        reached: the service accepted the call.
        counted: a reply came, and its cost, or an estimate of it, is counted.
    """

    tokens: float | None = None
    cost_usd: Decimal | None = Decimal(0)
    reached: bool = False
    counted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailure:
    """How a call ended that brought no reply.

    Attributes:
        error: why.
        raw: the reply as far as it came; empty where none did.
    """

    error: AudioBatchError
    raw: bytes = b""


@dataclass(slots=True, kw_only=True)
class TurnCall:
    """A turn, or a part of it, from its first call to its outcome.

    Attributes:
        policy: what the call is made for.
        history: the turns before it, with their replies.
        sound: the recording, in the first turn of a recording.
        only_deployment: the one that can serve it (where its audio id lives, or which its row names).
        before: what the ledger says of it so far.
        earlier_attempts: calls that earlier runs made for this very request.
        calls: calls made in this run.
        last: the last attempt that was sent.
        failure: how the last call ended, where it brought no reply and its end was not final.
        paid_usd: what the last call cost, where that is known: 0 where it was certainly not billed.
        cost: of the replies that came so far.
        repair: an answer without the required fields, while the service is asked to correct it.
        text_only: a reply without the audio that was requested, while it is requested once more.
        standing: an outcome, recorded, that stays unless this call brings a reply.
        trimmed_s: seconds of silence that were cut from the sound.
    """

    context: CallContext
    policy: TurnPolicy
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: AudioPart | None
    only_deployment: str | None
    before: Outcome | None
    tries: Tries
    earlier_attempts: int = 0
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    calls: int = 0
    last: Attempt | None = None
    failure: CallFailure | None = None
    paid_usd: Decimal | None = None
    cost: TurnCost = field(default_factory=TurnCost)
    without_audio_ids: bool = False
    text_only: tuple[Reply, Attempt] | None = None
    repair: AnswerRepair | None = None
    standing: Outcome | None = None
    trimmed_s: float | None = None

    async def run(self) -> Outcome:
        """Call until there is an outcome.

        Raises:
            Stopping, NoDeployment: the run ended first; nothing is recorded but the calls that were made.
            Deferred: it goes on later in the run.
            StorageError: the outcome could not be recorded; a paid reply is in the spool.
        """
        await self._resume_repair()
        try:
            return await retrying(self.tries, sleep=self.context.back_off)(self._call)
        except StorageError as unwritten:
            if self.text_only is not None and self.standing is None:
                await self.context.settle(self._spool(*self.text_only, unwritten))
            raise
        except (Stopping, NoDeployment, AudioBatchError) as ended:
            if self.standing is not None:
                return self.standing
            if self.text_only is not None:
                return await self.context.settle(self._record(*self.text_only))
            if self.tries.deferred:
                raise Deferred from ended
            failure = self._failure_behind(ended)
            if failure is None:
                raise
            return await self.context.settle(self._fail(failure))

    def _failure_behind(self, ended: Exception) -> CallFailure | None:
        """Return the failure that the turn ends with; None where the run ended before the turn did."""
        last = self.failure
        if not isinstance(ended, AudioBatchError):
            return last if last is not None and isinstance(last.error, OutcomeUnknown) else None
        return last if last is not None and last.error is ended else CallFailure(error=ended)

    async def _call(self) -> Outcome:
        """Make one call, with a permit from the pool.

        Raises:
            AskAgain, TransientError, OutcomeUnknown: the retry layer decides whether another call is made.
        """
        context = self.context
        request = context.bounded(self._request())
        tokens = context.sizes.call_tokens(request, read_aloud=self.item.read_aloud)
        worst = context.worst_usd(request)
        permit = await self._permit(tokens, worst)
        cost = _CallCost()
        try:
            with MEMORY.call():
                return await self._call_with(permit, request, worst.get(permit.deployment.name), cost)
        finally:
            permit.release(actual_tokens=cost.tokens, proven=cost.reached, cost_usd=cost.cost_usd)

    async def _call_with(
        self, permit: Permit, request: Request, worst_usd: Decimal | None, cost: _CallCost
    ) -> Outcome:
        """Record the intent, make the call, record how it ended."""
        context = self.context
        attempt = await self._record_intent(permit, worst_usd)
        cost.cost_usd = None
        try:
            reply = await self._send(request, permit, cost)
            with working_on_reply(partial(body_of, reply), reply.request_id):
                self._request_audio_again(reply, attempt)
                await self._request_repair(reply, attempt)
                return await self._settled(reply, attempt)
        except StorageError:
            raise
        except AudioBatchError as error:
            if not cost.reached and not _is_perhaps_billed(error):
                self.paid_usd = cost.cost_usd = Decimal(0)
            cost.reached = cost.reached or not isinstance(error, (DeploymentFatal, Disconnected))
            if cost.cost_usd is None and not cost.counted:
                self._count_unknown_cost(error)
            failure = CallFailure(error=error, raw=await context.partial_body(error, request))
            outcome = await context.settle(self._end_without_reply(failure, attempt, permit))
            if outcome is None:
                raise
            return outcome

    async def _record_intent(self, permit: Permit, worst_usd: Decimal | None) -> Attempt:
        """Record the call in the ledger; it leaves right after.

        Raises:
            Stopping, AskAgain: it is not made after all.
        """
        context = self.context
        if context.stop.asked:
            raise Stopping
        attempt = replace(self._attempt(permit.deployment.name), worst_usd=worst_usd)
        await context.ledger.writer.record_intent(attempt)
        leaves = await permit.depart()
        if context.stop.asked or not leaves:
            await self._withdraw(attempt)
        self.last = attempt
        context.stats.called(attempt.item_id)
        return attempt

    async def _send(self, request: Request, permit: Permit, call_cost: _CallCost) -> Reply:
        """Send the request, and count what its reply cost."""
        context, name = self.context, permit.deployment.name
        reply = await context.call(name, request)
        call_cost.reached = True
        call_cost.tokens = float(reply.usage.total_tokens) if reply.usage else None
        target, basis = context.targets[name], CostBasis.USAGE
        with working_on_reply(partial(body_of, reply), reply.request_id):
            cost_usd = self.paid_usd = call_cost.cost_usd = target.reply_usd(reply)
            if cost_usd is None and target.price is not None:
                # For people alone: limits of cost count the call's worst case.
                basis = CostBasis.ESTIMATE
                cost_usd = await context.on_disk(estimated_usd, target, request, reply)
        call_cost.counted = True
        context.stats.paid(reply.usage, cost_usd, name, basis)
        self.cost.add(reply.usage, cost_usd, basis)
        context.feedback.went_well(permit, reply)
        return reply

    async def _settled(self, reply: Reply, attempt: Attempt) -> Outcome:
        """Record a reply; where that fails, the reply is in the spool."""
        try:
            return await self.context.settle(self._record(reply, attempt))
        except StorageError:
            self.text_only = None  # this reply is better, and in the spool
            raise

    def _count_unknown_cost(self, error: AudioBatchError) -> None:
        """Count a call that was perhaps billed at an unknown cost; `perhaps_billed` counts a lost one."""
        self.context.stats.cost_is_known = False
        if not isinstance(error, OutcomeUnknown):
            self.cost.add(None, None, CostBasis.UNKNOWN)

    async def _withdraw(self, attempt: Attempt) -> NoReturn:
        """Record that a call, whose intent is recorded, is not made.

        Raises:
            Stopping: the run is stopping.
            AskAgain: its deployment pauses, or is out of use: the next that is free serves the turn.
        """
        self.calls -= 1
        self.paid_usd = Decimal(0)
        await self.context.settle(self.context.ledger.writer.record_end(self._end(attempt, Status.FAILED)))
        if self.context.stop.asked:
            raise Stopping
        raise AskAgain(f"deployment {attempt.deployment} rests")

    async def _permit(self, tokens: CallTokens, worst_usd: Mapping[str, Decimal]) -> Permit:
        """Wait for a permit to call.

        Raises:
            AskAgain: the deployment that holds the earlier reply cannot serve; others can, with the reply's text.
            NoDeployment, Stopping: there will be no call.
        """
        context = self.context
        try:
            return await context.pool.acquire(tokens, only=self.only_deployment, worst_usd=worst_usd)
        except BudgetReached as reached:
            context.stop.ask(StopReason.MAX_COST, reached.message)
            raise Stopping from reached
        except NoDeployment as ended:
            # Of those that are left, parked ones too: the pool knows whether they are waited for.
            if self.only_deployment is None or self.item.deployment or not context.feedback.others_left:
                raise
            self.only_deployment, self.without_audio_ids = None, True
            raise AskAgain(str(ended)) from ended

    def _request(self) -> Request:
        history = self.history
        if self.without_audio_ids:
            history = tuple(
                replace(exchange, reply=replace(exchange.reply, audio_id=None)) for exchange in history
            )
        item, turn = self.item, self.turn
        request = Request(
            item_id=item.item_id,
            turn=turn.number,
            system=system_of(item.system, turn),
            history=history,
            text=text_of(turn),
            audio=self.sound,
            modalities=turn.modalities,
            voice=turn.voice,
            format=requested_format(turn.format, self.context.finish),
            temperature=item.temperature,
            seed=item.seed,
            max_completion_tokens=item.max_completion_tokens,
        )
        return self.policy.build_request(self.repair.request(request, turn) if self.repair else request)

    def _attempt(self, deployment: str) -> Attempt:
        self.calls += 1
        self.paid_usd = None
        context = self.context
        return Attempt(
            attempt_id=context.next_attempt_id(),
            item_id=self.item.item_id,
            turn=self.turn.number,
            fingerprint=self.turn.fingerprint,
            run_id=context.run_id,
            number=self.earlier_attempts + self.calls,
            started_at=datetime.now(UTC),
            deployment=deployment,
            provider=context.targets[deployment].provider,
            transport=context.transports[deployment].name,
            model=context.targets[deployment].model,
            voice=self.turn.voice,
            format=self.turn.format,
            prompt=self.turn.text,
            input_sha256=self.item.source.sha256,
            settings_key=context.settings_key,
            part=self.policy.part,
        )

    def _end(self, attempt: Attempt, state: Status, error: AudioBatchError | None = None) -> AttemptEnd:
        return AttemptEnd(
            attempt_id=attempt.attempt_id,
            state=state,
            finished_at=datetime.now(UTC),
            error_type=error.error_type if error else None,
            request_id=getattr(error, "request_id", None) or "",
            cost_usd=self.paid_usd,
        )

    async def _end_without_reply(
        self, failure: CallFailure, attempt: Attempt, permit: Permit
    ) -> Outcome | None:
        """Record how a call ended that brought no reply, and let its deployment pause where it asked to.

        Returns:
            The turn's outcome, recorded together with the call's end, where the service's answer is final: a kill
            between the two would have the same request paid for again. None: the retry layer decides.

        Raises:
            AskAgain: the turn can be sent in another way, or to another deployment.
        """
        error = failure.error
        log.info(
            "%s turn %d try %d at %s: %s: %s",
            *(attempt.item_id, attempt.turn, attempt.number, attempt.deployment, error.error_type, error),
        )
        self.tries.pause_s = self.context.feedback.went_wrong(permit, error)
        others_left = self.context.feedback.others_left
        if isinstance(error, Unfinished):
            if failure.raw:
                return await self._record_unfinished(error, failure.raw, attempt)
            self._stop_for(error, error.message)
            error = BadReply(error.message, request_id=error.request_id)
            failure = CallFailure(error=error)
        state = Status.UNKNOWN if isinstance(error, OutcomeUnknown) else Status.FAILED
        end = self._end(attempt, state, error)
        drop_audio_ids = isinstance(error, AudioIdGone) and not self.without_audio_ids
        is_final = isinstance(error, (BadReply, RequestRejected)) and not drop_audio_ids
        if is_final and self.text_only is None:
            return await self._fail(failure, end)
        await self.context.ledger.writer.record_end(end)
        self.failure = failure
        if isinstance(error, DeploymentFatal) and others_left and self.item.deployment is None:
            raise AskAgain(error.message) from error
        if drop_audio_ids:
            self.without_audio_ids = True
            raise AskAgain(error.message) from error
        return None

    def _request_audio_again(self, reply: Reply, attempt: Attempt) -> None:
        """Raise AskAgain once, where the audio that was requested did not come and the job wants it."""
        is_missing = self.turn.wants_audio and reply.audio is None
        if is_missing and self.context.spec.retry_text_only and self.text_only is None:
            self.text_only = (reply, attempt)
            raise AskAgain("the reply came without the audio asked for", request_id=reply.request_id)

    async def _request_repair(self, reply: Reply, attempt: Attempt) -> None:
        """Raise AskAgain once, where the answer lacks the required fields; AnswerInvalid after that."""
        repair = check_answer(self.turn, reply.transcript_or_text, self.repair, reply.request_id)
        if repair is not None:
            self.repair = repair
            again = send_again(repair, reply)
            outcome, _ = self._succeeded(reply, attempt)
            end = self._end(attempt, Status.FAILED, again)
            await self.context.settle(record_answer(self.context, outcome, end))
            raise again

    async def _resume_repair(self) -> None:
        """Repair an answer next, where a run ended between that answer and its repair."""
        if self.turn.answer is None or self.standing is not None:
            return
        answer = await recorded_answer(self.context, self.item.item_id, self.turn, self.before)
        self.repair = check_answer(self.turn, answer.transcript) if answer else None
        if answer is not None and self.repair is not None:
            self.cost = TurnCost.of(answer)
            self.calls = max(self.calls, answer.attempts - self.earlier_attempts)

    async def _record(self, reply: Reply, attempt: Attempt) -> Outcome:
        """Write files, then the outcome; both before the permit is released."""
        return await self.policy.record(reply, *self._succeeded(reply, attempt))

    async def _spool(self, reply: Reply, attempt: Attempt, cause: StorageError) -> None:
        await self.policy.spool(reply, *self._succeeded(reply, attempt), cause)

    def _succeeded(self, reply: Reply, attempt: Attempt) -> tuple[Outcome, AttemptEnd]:
        """Make the outcome of a reply, without its files, and the end of its call."""
        outcome = replace(
            self.cost.stated_in(self._outcome(attempt)),
            status=Status.SUCCEEDED,
            transcript=reply.transcript_or_text,
            input_transcript=reply.input_transcript,
            latency_s=reply.latency_s,
            finish_reason=reply.finish_reason,
            request_id=reply.request_id or "",
            audio_id=reply.audio_id,
            audio_expires_at=reply.audio_expires_at,
        )
        end = AttemptEnd(
            attempt_id=attempt.attempt_id,
            state=Status.SUCCEEDED,
            finished_at=outcome.finished_at,
            request_id=outcome.request_id,
            cost_usd=self.context.targets[attempt.deployment].reply_usd(reply),
        )
        return outcome, end

    async def _fail(self, failure: CallFailure, end: AttemptEnd | None = None) -> Outcome:
        """Record a turn that failed. A failure that may pass does not replace an earlier success."""
        context, error = self.context, failure.error
        if self.standing is not None:
            if end is not None:
                await context.ledger.writer.record_end(end)
            return self.standing
        status = Status.UNKNOWN if isinstance(error, OutcomeUnknown) else Status.FAILED
        outcome = self._failed(error, status)
        may_pass = status is Status.UNKNOWN or error.error_type in RETRYABLE
        if success_in(self.before) is not None and may_pass:
            log.warning("%s turn %d: its earlier result stays: %s", outcome.item_id, outcome.turn, error)
            return outcome
        return await self.policy.record_failure(outcome, end, failure.raw)

    async def _record_unfinished(self, error: Unfinished, raw: bytes, attempt: Attempt) -> Outcome:
        """Store the body for the next run, and stop: what is wrong here would cost every item its call."""
        end = self._end(attempt, Status.SUCCEEDED, error)
        outcome = await self.policy.record_unfinished(self._failed(error, Status.PENDING), end, raw)
        self._stop_for(error, outcome.error_message)
        return outcome

    def _failed(self, error: AudioBatchError, status: Status) -> Outcome:
        """Make the outcome of a turn that brought no result."""
        assert self.last is not None
        return replace(
            self.cost.stated_in(self._outcome(self.last)),
            status=status,
            error_type=error.error_type,
            error_message=self.policy.error_message(error),
            request_id=getattr(error, "request_id", None) or "",
        )

    def _stop_for(self, error: Unfinished, message: str) -> None:
        reason = StopReason.STORAGE if error.is_disk_trouble else StopReason.UNFINISHED
        item_id = shown(self.item.item_id)
        self.context.stop.ask(reason, f"{item_id}: {message}. The next run finishes what is kept")

    def _outcome(self, attempt: Attempt) -> Outcome:
        return Outcome(
            item_id=self.item.item_id,
            turn=self.turn.number,
            fingerprint=self.turn.fingerprint,
            status=Status.PENDING,
            run_id=self.context.run_id,
            started_at=self.started,
            finished_at=datetime.now(UTC),
            version=next_version(self.before),
            prompt=self.turn.text,
            voice=self.turn.voice,
            format=self.turn.format,
            model=attempt.model,
            deployment=attempt.deployment,
            provider=attempt.provider,
            transport=attempt.transport,
            attempts=attempt.number,
            perhaps_billed=self.tries.unknown,
            input_sha256=self.item.source.sha256,
            settings_key=self.context.settings_key,
            kept_as=self.turn.kept_as,
            trimmed_s=self.trimmed_s,
        )


def success_in(before: Outcome | None) -> Outcome | None:
    """Return the outcome that the ledger has of a turn, where it is a success; else None."""
    return before if before and before.status is Status.SUCCEEDED else None


def attempts_in(before: Outcome | None, turn: Turn) -> int:
    """Return how many calls earlier runs made for this very request, while it has no success."""
    same = before is not None and before.fingerprint == turn.fingerprint
    return before.attempts if before and same and before.status is not Status.SUCCEEDED else 0


def redos(spec: JobSpec) -> dict[Check, int]:
    """Return how often a reply with each flaw is requested again; the last value of a check counts."""
    return {check: times for check, times in map(check_action, spec.on_check) if times}


async def redo_flawed(
    spec: JobSpec, call: Callable[[Outcome | None], Awaitable[Outcome]], outcome: Outcome
) -> Outcome:
    """Request a reply again for its flaws: `--on-check CHECK=redo[:N]`.

    The flawed reply is recorded as any other. The next one replaces it only when it is recorded; until then, and if
    it never comes, the first one stays. A reply that is still flawed after N calls stays.

    Args:
        spec: says which flaws, and how often.
        call: makes one more call; takes the outcome that stands until there is another.
        outcome: of the first call.

    Returns:
        The last outcome that succeeded, or the first.
    """
    wanted = redos(spec)
    made = 0
    while outcome.status is Status.SUCCEEDED:
        most = max((wanted.get(check, 0) for check in outcome.checks), default=0)
        if made >= most:
            break
        made += 1
        flaws = " ".join(check for check in outcome.checks if check in wanted)
        log.info("%s turn %d: %s: redo %d of %d", outcome.item_id, outcome.turn, flaws, made, most)
        again = await call(outcome)
        if again.status is not Status.SUCCEEDED or again == outcome:
            break
        outcome = again
    return outcome


def _is_perhaps_billed(error: AudioBatchError) -> bool:
    return isinstance(error, _PERHAPS_BILLED) or getattr(error, "code", None) == _TOO_LONG
