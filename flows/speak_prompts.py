"""The flow for text: prompts in; each one answered aloud or read aloud, transcripts and a manifest out."""

from __future__ import annotations

from prefect import flow

from flows import body
from pipeline.jobspec import JobSpec  # noqa: TC001 - Prefect reads both types as it makes the parameter form
from pipeline.sending.tally import RunSummary  # noqa: TC001


@flow(
    name="speak-prompts",
    flow_run_name=body.run_name,
    persist_result=False,
    retries=0,
    log_prints=False,
)
async def speak_prompts(job: JobSpec) -> RunSummary:
    """Have each prompt of the job's inputs answered in speech, or read aloud, and save the replies.

    Args:
        job: What to send and where to save; no secret. Credentials come from the environment of the process.

    Returns:
        Counts, cost and the manifest's path, once all is done or the rest failed for good (exit codes 0 and 3).

    Raises:
        RunFailed: the run stopped before its end; `summary` says what was done.
        RunInterrupted: … by a signal or a cancellation, after what was in flight had ended.
        ConfigError: nothing was sent.
    """
    return await body.run(job)
