"""One turn of one item: called until it has an outcome, and the outcome recorded.

The order of writes is the promise: intent on disk → call → files on disk → outcome on disk. The place among the
calls in flight is held until the outcome is recorded, so that after a kill at most as many calls have an
unknown end as may be in flight.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from audiobatch.audio.finish import asked_format
from audiobatch.calls.record import keep_reply, record_failure, record_reply
from audiobatch.calls.repair import Repair, ask_again, check_answer, record_answer, recorded_answer
from audiobatch.calls.spent import TurnCost
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
from audiobatch.ledger.ledger import Attempt, AttemptEnd
from audiobatch.limits.pool import NoDeployment, Stopping
from audiobatch.limits.retry import AskAgain, Deferred, Tries, retrying
from audiobatch.model import CostBasis, Outcome, Request, Status, next_version
from audiobatch.planning.review_rules import system_of, text_of
from audiobatch.planning.unstated_usage import estimated_usd
from audiobatch.stop import StopReason
from audiobatch.transports.reply_memory import MEMORY
from audiobatch.transports.stored_body import body_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audiobatch.calls.context import CallContext
    from audiobatch.limits.limiter import CallTokens
    from audiobatch.limits.pool import Lease
    from audiobatch.model import AudioPart, Exchange, Item, Reply, Turn

log = logging.getLogger(__name__)

#: How a call may end that brought nothing and was perhaps charged all the same.
_PERHAPS_BILLED = (OutcomeUnknown, BadReply, ContentFiltered, Unfinished)
#: A refusal that is charged: the service has read the prompt. Source: Azure OpenAI, "Plan to manage costs" (a 400
#: for a content filter or an input limit), 2026-11-20.
_TOO_LONG = "context_length_exceeded"


@dataclass(slots=True, kw_only=True)
class _Bill:
    """What a call came to, for the pool to hear when its place is given back.

    Attributes:
        tokens: as the service counted them; None: it did not say.
        cost_usd: None: perhaps billed, the worst case stays reserved.
        reached: the service let the call in.
        counted: a reply came, and its cost, or an estimate of it, is counted.
    """

    tokens: float | None = None
    cost_usd: Decimal | None = Decimal(0)
    reached: bool = False
    counted: bool = False


@dataclass(slots=True, kw_only=True)
class TurnCall:
    """A turn on its way.

    Attributes:
        history: the turns before it, with their replies.
        sound: the recording, in the first turn of a recording.
        bound: the one deployment that can serve it (where its audio id lives, or which its row names).
        before: what the ledger says of it so far.
        calls: how many were made for it in this run.
        open_end: why the last call's end is not known, if it is not.
        paid_usd: what the last call cost, where that is known: 0 where it was certainly not billed.
        spent: what the replies took that came so far, whatever became of them.
        repair: an answer that did not hold the fields asked for, while it is asked to be put right.
        spare: a reply in text alone, kept while the sound that was asked for is asked for once more.
        keeps: an outcome that stands, recorded, unless this brings a reply.
        trimmed_s: seconds of silence that were left out of the sound.
    """

    context: CallContext
    item: Item
    turn: Turn
    history: tuple[Exchange, ...]
    sound: AudioPart | None
    bound: str | None
    before: Outcome | None
    tries: Tries
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    calls: int = 0
    last: Attempt | None = None
    open_end: OutcomeUnknown | None = None
    paid_usd: Decimal | None = None
    spent: TurnCost = field(default_factory=TurnCost)
    without_audio_ids: bool = False
    spare: tuple[Reply, Attempt] | None = None
    repair: Repair | None = None
    keeps: Outcome | None = None
    trimmed_s: float | None = None

    async def run(self) -> Outcome:
        """Call until there is an outcome.

        Raises:
            Stopping, NoDeployment: the run ended first; nothing is recorded but the calls that were made.
            Deferred: it goes on later in the run.
            StorageError: the outcome could not be recorded; a paid reply is kept in the spool.
        """
        await self._go_on_with_answer()
        try:
            return await retrying(self.tries, sleep=self.context.back_off)(self._call)
        except StorageError as unwritten:
            if self.spare is not None and self.keeps is None:
                await self.context.settle(self._spool(*self.spare, unwritten))
            raise
        except (Stopping, NoDeployment, AudioBatchError) as ended:
            if self.keeps is not None:
                return self.keeps
            if self.spare is not None:
                return await self.context.settle(self._keep(*self.spare))
            if self.tries.deferred:
                raise Deferred from ended
            failed = ended if isinstance(ended, AudioBatchError) else self.open_end
            if failed is None:
                raise
            return await self.context.settle(self._failed(failed))

    async def _call(self) -> Outcome:
        """One call with everything around it."""
        context = self.context
        request = context.bounded(self._request())
        tokens = context.sizes.call_tokens(request, read_aloud=self.item.read_aloud)
        worst = context.worst_usd(request)
        lease = await self._lease(tokens, worst)
        bill = _Bill()
        try:
            with MEMORY.call():
                return await self._in_lease(request, lease, worst.get(lease.deployment.name), bill)
        finally:
            lease.release(actual_tokens=bill.tokens, proven=bill.reached, cost_usd=bill.cost_usd)

    async def _in_lease(
        self, request: Request, lease: Lease, worst_usd: Decimal | None, bill: _Bill
    ) -> Outcome:
        """Announce the call, make it, write down how it ended."""
        context = self.context
        attempt = await self._announced(lease, worst_usd)
        bill.cost_usd = None
        try:
            reply = await self._reply(request, lease, bill)
            with working_on_reply(partial(body_of, reply), reply.request_id):
                self._ask_for_sound_again(reply, attempt)
                await self._ask_for_answer_again(reply, attempt)
                return await self._settled(reply, attempt)
        except StorageError:
            raise
        except AudioBatchError as failed:
            if not bill.reached and not _is_perhaps_billed(failed):
                self.paid_usd = bill.cost_usd = Decimal(0)
            bill.reached = bill.reached or not isinstance(failed, (DeploymentFatal, Disconnected))
            if bill.cost_usd is None and not bill.counted:
                self._cost_is_not_known(failed)
            await context.keep_body(failed, request)
            outcome = await context.settle(self._ended_without(failed, attempt, lease))
            if outcome is None:
                raise
            return outcome

    async def _announced(self, lease: Lease, worst_usd: Decimal | None) -> Attempt:
        """The call, written down; it leaves now.

        Raises:
            Stopping, AskAgain: it is not made after all.
        """
        context = self.context
        if context.stop.asked:
            raise Stopping
        attempt = replace(self._attempt(lease.deployment.name), worst_usd=worst_usd)
        await context.ledger.record_intent(attempt)
        leaves = await lease.leaves()
        if context.stop.asked or not leaves:
            await self._withdraw(attempt)
        self.last = attempt
        context.stats.called(attempt.item_id)
        return attempt

    async def _reply(self, request: Request, lease: Lease, bill: _Bill) -> Reply:
        """What the call brings, with its cost counted."""
        context, name = self.context, lease.deployment.name
        reply = await context.call(name, request)
        bill.reached = True
        bill.tokens = float(reply.usage.total_tokens) if reply.usage else None
        target, basis = context.targets[name], CostBasis.USAGE
        with working_on_reply(partial(body_of, reply), reply.request_id):
            cost_usd = self.paid_usd = bill.cost_usd = target.reply_usd(reply)
            if cost_usd is None and target.price is not None:
                # For people alone: limits of cost count the call's worst case.
                cost_usd, basis = (
                    await context.on_disk(estimated_usd, target, request, reply),
                    CostBasis.ESTIMATE,
                )
        bill.counted = True
        context.stats.paid(reply.usage, cost_usd, name, basis)
        self.spent.add(reply.usage, cost_usd, basis)
        context.feedback.went_well(lease, reply)
        return reply

    async def _settled(self, reply: Reply, attempt: Attempt) -> Outcome:
        """The outcome that a reply makes, recorded; where that fails, the reply is in the spool."""
        try:
            return await self.context.settle(self._keep(reply, attempt))
        except StorageError:
            self.spare = None  # this reply is better, and brought home
            raise

    def _cost_is_not_known(self, failed: AudioBatchError) -> None:
        """A call was perhaps billed, and nothing says how much. A lost one is counted in `perhaps_billed`."""
        self.context.stats.cost_is_known = False
        if not isinstance(failed, OutcomeUnknown):
            self.spent.add(None, None, CostBasis.UNKNOWN)

    async def _withdraw(self, attempt: Attempt) -> NoReturn:
        """The call was announced and is not made.

        Raises:
            Stopping: the run is stopping.
            AskAgain: its deployment rests, or is out of use: it goes to the next that has room.
        """
        self.calls -= 1
        self.paid_usd = Decimal(0)
        await self.context.settle(self.context.ledger.record_end(self._end(attempt, Status.FAILED)))
        if self.context.stop.asked:
            raise Stopping
        raise AskAgain(f"deployment {attempt.deployment} rests")

    async def _lease(self, tokens: CallTokens, worst_usd: Mapping[str, Decimal]) -> Lease:
        """Wait for the right to call.

        Raises:
            AskAgain: the deployment that keeps the earlier reply cannot serve; others can, by the reply's words.
            NoDeployment, Stopping: there will be no call.
        """
        context = self.context
        try:
            return await context.pool.acquire(tokens, only=self.bound, worst_usd=worst_usd)
        except BudgetReached as reached:
            context.stop.ask(StopReason.MAX_COST, reached.message)
            raise Stopping from reached
        except NoDeployment as ended:
            # Of those that are left, parked ones too: the pool knows whether they are waited for.
            if self.bound is None or self.item.deployment or not context.feedback.others_left:
                raise
            self.bound, self.without_audio_ids = None, True
            raise AskAgain(str(ended)) from ended

    def _request(self) -> Request:
        history = self.history
        if self.without_audio_ids:
            history = tuple(replace(one, reply=replace(one.reply, audio_id=None)) for one in history)
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
            format=asked_format(turn.format, self.context.finish),
            temperature=item.temperature,
            seed=item.seed,
            max_completion_tokens=item.max_completion_tokens,
        )
        return self.repair.request(request, turn) if self.repair else request

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
            number=self._earlier_attempts() + self.calls,
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
        )

    def _earlier_attempts(self) -> int:
        """Calls that earlier runs made for this very request."""
        before = self.before
        same = before is not None and before.fingerprint == self.turn.fingerprint
        return before.attempts if before and same and before.status is not Status.SUCCEEDED else 0

    def _end(self, attempt: Attempt, state: Status, error: AudioBatchError | None = None) -> AttemptEnd:
        return AttemptEnd(
            attempt_id=attempt.attempt_id,
            state=state,
            finished_at=datetime.now(UTC),
            error_type=error.error_type if error else None,
            request_id=getattr(error, "request_id", None) or "",
            cost_usd=self.paid_usd,
        )

    async def _ended_without(self, failed: AudioBatchError, attempt: Attempt, lease: Lease) -> Outcome | None:
        """Write down how a call ended that brought no reply; let the deployment rest where it asked to.

        Returns:
            The turn's outcome, recorded together with the call's end, where the service has said its last word:
            a kill between the two would have the same request paid for again.

        Raises:
            AskAgain: the turn can be asked for in another way, or of another deployment.
        """
        log.info(
            "%s turn %d try %d at %s: %s: %s",
            *(attempt.item_id, attempt.turn, attempt.number, attempt.deployment, failed.error_type, failed),
        )
        others_left = self.context.feedback.went_wrong(lease, failed)
        if isinstance(failed, Unfinished):
            if failed.raw:
                return await self._keep_unfinished(failed, self._end(attempt, Status.SUCCEEDED, failed))
            self._stop_for(failed)
            failed = BadReply(failed.message, request_id=failed.request_id)
        state = Status.UNKNOWN if isinstance(failed, OutcomeUnknown) else Status.FAILED
        end = self._end(attempt, state, failed)
        otherwise = isinstance(failed, AudioIdGone) and not self.without_audio_ids
        if isinstance(failed, (BadReply, RequestRejected)) and not otherwise and self.spare is None:
            return await self._failed(failed, end)
        await self.context.ledger.record_end(end)
        self.open_end = failed if isinstance(failed, OutcomeUnknown) else None
        if isinstance(failed, DeploymentFatal) and others_left and self.item.deployment is None:
            raise AskAgain(failed.message) from failed
        if otherwise:
            self.without_audio_ids = True
            raise AskAgain(failed.message) from failed
        return None

    def _ask_for_sound_again(self, reply: Reply, attempt: Attempt) -> None:
        """Raises: AskAgain: once, where the sound that was asked for did not come and the job wants it."""
        wanting = self.turn.wants_audio and reply.audio is None
        if wanting and self.context.spec.retry_text_only and self.spare is None:
            self.spare = (reply, attempt)
            raise AskAgain("the reply came without the audio asked for", request_id=reply.request_id)

    async def _ask_for_answer_again(self, reply: Reply, attempt: Attempt) -> None:
        """Raises: AskAgain: once, where the answer does not hold the fields; AnswerInvalid: after that."""
        repair = check_answer(self.turn, reply.words, self.repair, reply.request_id)
        if repair is not None:
            self.repair = repair
            again = ask_again(repair, reply)
            outcome, _ = self._succeeded(reply, attempt)
            end = self._end(attempt, Status.FAILED, again)
            await self.context.settle(record_answer(self.context, outcome, end))
            raise again

    async def _go_on_with_answer(self) -> None:
        """Where a run ended between an answer and its repair, the repair comes next."""
        if self.turn.answer is None or self.keeps is not None:
            return
        answer = await recorded_answer(self.context, self.item.item_id, self.turn, self.before)
        self.repair = check_answer(self.turn, answer.transcript) if answer else None
        if answer is not None and self.repair is not None:
            self.spent = TurnCost.of(answer)
            self.calls = max(self.calls, answer.attempts - self._earlier_attempts())

    async def _keep(self, reply: Reply, attempt: Attempt) -> Outcome:
        """Files, then the outcome; both before the call's place is given to another."""
        outcome, end = self._succeeded(reply, attempt)
        return await record_reply(
            self.context,
            self.item,
            self.turn,
            reply,
            outcome=outcome,
            end=end,
            replaced=self._success_before(),
        )

    async def _spool(self, reply: Reply, attempt: Attempt, because: StorageError) -> None:
        """Keep a reply elsewhere that the output can not be given any more."""
        outcome, end = self._succeeded(reply, attempt)
        await keep_reply(self.context, self.item, self.turn, reply, outcome=outcome, end=end, because=because)

    def _succeeded(self, reply: Reply, attempt: Attempt) -> tuple[Outcome, AttemptEnd]:
        """The outcome that a reply makes, without its files, and the end of its call."""
        cost = self.context.targets[attempt.deployment].reply_usd(reply)
        outcome = replace(
            self._outcome(attempt),
            status=Status.SUCCEEDED,
            transcript=reply.words,
            input_transcript=reply.input_transcript,
            latency_s=reply.latency_s,
            usage=self.spent.usage,
            cost_usd=self.spent.cost_usd,
            cost_basis=self.spent.basis,
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
            cost_usd=cost,
        )
        return outcome, end

    def _success_before(self) -> Outcome | None:
        return self.before if self.before and self.before.status is Status.SUCCEEDED else None

    async def _failed(self, failed: AudioBatchError, end: AttemptEnd | None = None) -> Outcome:
        """Record a turn that came to nothing. A failure that may pass does not take a success's place."""
        context, before = self.context, self._success_before()
        if self.keeps is not None:
            if end is not None:
                await context.ledger.record_end(end)
            return self.keeps
        assert self.last is not None
        outcome = replace(
            self._outcome(self.last),
            status=Status.UNKNOWN if isinstance(failed, OutcomeUnknown) else Status.FAILED,
            error_type=failed.error_type,
            error_message=failed.message,
            usage=self.spent.usage,
            cost_usd=self.spent.cost_usd,
            cost_basis=self.spent.basis,
            request_id=getattr(failed, "request_id", None) or "",
        )
        if before is not None and (isinstance(failed, OutcomeUnknown) or failed.error_type in RETRYABLE):
            log.warning("%s turn %d: its earlier result stays: %s", outcome.item_id, outcome.turn, failed)
            return outcome
        raw = failed.raw if isinstance(failed, (BadReply, OutcomeUnknown)) else b""
        return await record_failure(context, outcome, end, raw, before)

    async def _keep_unfinished(self, failed: Unfinished, end: AttemptEnd) -> Outcome:
        """Keep the body for the next run, and stop: what is wrong here would cost every item its call."""
        outcome = await record_failure(
            self.context, self._unfinished(failed), end, failed.raw, self._success_before()
        )
        self._stop_for(failed)
        return outcome

    def _unfinished(self, failed: Unfinished) -> Outcome:
        assert self.last is not None
        return replace(
            self._outcome(self.last),
            error_type=failed.error_type,
            error_message=failed.message,
            usage=self.spent.usage,
            cost_usd=self.spent.cost_usd,
            cost_basis=self.spent.basis,
            request_id=failed.request_id or "",
        )

    def _stop_for(self, failed: Unfinished) -> None:
        reason = StopReason.STORAGE if failed.is_disk_trouble else StopReason.UNFINISHED
        item_id = shown(self.item.item_id)
        self.context.stop.ask(reason, f"{item_id}: {failed.message}. The next run finishes what is kept")

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


def _is_perhaps_billed(failed: AudioBatchError) -> bool:
    return isinstance(failed, _PERHAPS_BILLED) or getattr(failed, "code", None) == _TOO_LONG
