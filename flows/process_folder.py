"""The flow for recordings: a folder of audio in; spoken replies, transcripts and a manifest out."""

from __future__ import annotations

from prefect import flow

from flows import body
from pipeline.jobspec import JobSpec  # noqa: TC001 - Prefect reads both types as it makes the parameter form
from pipeline.sending.tally import RunSummary  # noqa: TC001


@flow(
    name="process-folder",
    flow_run_name=body.run_name,
    persist_result=False,
    retries=0,
    log_prints=False,
)
async def process_folder(job: JobSpec) -> RunSummary:
    """Send each recording of the job's inputs, with the job's prompt, and save the replies.

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
