"""A job's inputs, found and probed into the ledger, which is the queue."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from audiobatch.execution.wiring import import_ahead
from audiobatch.inputs.discover import Discovery

if TYPE_CHECKING:
    from audiobatch.execution.job import Job

log = logging.getLogger(__name__)

#: Inputs that are written to the ledger together.
_BATCH = 500


def find_inputs(job: Job) -> None:
    """Every input of the job into its ledger, until a stop is asked for. Blocks.

    Raises:
        ConfigError: there is nothing to work on.
    """
    if job.retry is not None and "-" in job.spec.inputs:
        # Standard input came once; what it brought is in the ledger.
        job.ledger.see_all(job.queue_id)
        return
    if not job.ledger.count_outcomes():
        import_ahead()  # a first run will send
    stdin = sys.stdin.buffer if "-" in job.spec.inputs else None
    discovery = Discovery(job.spec, job.ledger.known_files(), stdin, job.is_arriving)
    batch = []
    noted = 0
    for source in discovery.sources():
        batch.append(source)
        if source.media is not None and source.media.notes:
            noted += 1
            log.info("%s: %s", source.item_id, "; ".join(source.media.notes))
        job.found += 1
        if len(batch) >= _BATCH:
            job.ledger.put_sources(batch, job.queue_id)
            batch = []
        if job.stop.asked:
            break
    job.ledger.put_sources(batch, job.queue_id)
    if not job.stop.asked:
        job.ledger.forget_missing_inputs(job.queue_id)
    if noted:
        job.warn(
            f"{noted} recordings are not what they seem (such as a wrong ending); the run's log says how"
        )
    if discovery.tally.left_out:
        log.info("%d files were left out by --include and --exclude", discovery.tally.left_out)
    if discovery.tally.other_files:
        log.info("%d files with other endings were left aside", discovery.tally.other_files)
    if discovery.tally.skipped_links:
        job.warn(f"{discovery.tally.skipped_links} symbolic links were not followed")
