"""How a run ended: its counts, its exit code, and what a person should know or do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from audiobatch.calls.stats import RunSummary
from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S, price_of
from audiobatch.errors import ExitCode
from audiobatch.stop import EXIT_CODES

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.execution.job import Job
    from audiobatch.planning.plan import Plan


def summary_of(job: Job, trouble: str) -> RunSummary:
    """The summary of a run whose plan was made; `trouble`: what went wrong at its very end."""
    plan, tally = job.plan, job.tally
    assert plan is not None
    left = plan.to_send - tally.ended if job.left is None else job.left
    trouble = "" if trouble in job.stop.detail else trouble
    return RunSummary(
        run_id=job.run_id,
        output=job.output,
        manifest=job.output / job.views.manifest.name,
        exit_code=_exit_code(job, plan),
        items=plan.items,
        sent=tally.sent,
        succeeded=tally.succeeded,
        failed=tally.failed,
        refused=plan.refused,
        unknown=tally.unknown,
        pending=left + plan.held_back + plan.unfinished + (tally.unfinished if job.left is not None else 0),
        finished=tally.finished,
        skipped_done=plan.done,
        cost_usd=tally.cost_usd if tally.cost_is_known else None,
        input_audio_s=tally.input_audio_s,
        output_audio_s=tally.output_audio_s,
        elapsed_s=(datetime.now(UTC) - job.started).total_seconds(),
        stopped_by=job.stop.reason.value if job.stop.reason else None,
        input_tokens=tally.input_text_tokens + tally.input_audio_tokens,
        output_tokens=tally.output_text_tokens + tally.output_audio_tokens,
        by_deployment=dict(tally.by_deployment),
        message=" ".join(part for part in (job.stop.detail, trouble, _what_is_left(job, plan)) if part),
    )


def _exit_code(job: Job, plan: Plan) -> ExitCode:
    if job.stop.reason is not None:
        return EXIT_CODES[job.stop.reason]
    bad = job.tally.failed + job.tally.unknown + plan.refused
    return ExitCode.PARTIAL if bad else ExitCode.DONE


def _what_is_left(job: Job, plan: Plan) -> str:
    parts = []
    if job.tally.estimated:
        parts.append(
            f"{job.tally.estimated} replies came without token counts: their cost is estimated, and cost limits "
            "count their worst case."
        )
    if plan.final:
        parts.append(f"{plan.final} items failed for good earlier; `audiobatch retry` sends them again.")
    if plan.unfinished and not job.stop.reasons:
        parts.append(f"{plan.unfinished} replies are paid for and not finished; the next run tries again.")
    if plan.unknown:
        parts.append(f"{plan.unknown} items have an unknown end; `audiobatch retry` sends them again.")
    if plan.approved:
        parts.append(
            f"{plan.approved} approved results were left as they are; --redo --force makes them again."
        )
    if plan.rejected:
        parts.append(f"{plan.rejected} items are marked reject and were not sent.")
    if plan.held_back:
        parts.append(f"{plan.held_back} items were held back by --limit; run again for them.")
    if unheard := job.tally.unheard:
        parts.append(f"The words of {unheard} results could not be written down; run again for them.")
    if left_out_s := job.tally.trimmed_s:
        parts.append(f"{left_out_s:,.0f} s of silence were not sent{worth(job.spec, left_out_s)}.")
    return " ".join(parts)


def worth(spec: JobSpec, audio_s: float) -> str:
    """What sending so much sound would have cost, in words; empty where the price is not known."""
    price = price_of(spec.model, spec.provider, prices=spec.prices)
    if price is None:
        return ""
    return f", ${price.audio_in * round(audio_s * AUDIO_IN_TOKENS_PER_S) / 1_000_000:.4f} of input"
