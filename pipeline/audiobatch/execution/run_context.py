"""What a run is given: resolved once when it opens, and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from audiobatch.address import Location
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.planning.plan import Retry
    from audiobatch.stop import Stop
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """An open run's job, its output folder, and where its calls go.

    Attributes:
        settings_key: of the settings that a reply depends on.
        targets: the job's own deployments, those of transcriptions included, with credentials and prices.
        retry: what a `retry` selects; None: an ordinary run.
        sends: the run makes its calls itself; else workers make them, from the queue that it fills.
        queue_id: of the queue that the run works on.
        home: the folder of this machine that is locked and holds the log: the output, if that is local.
    """

    spec: JobSpec
    run_id: str
    settings_key: str
    targets: tuple[Target, ...]
    retry: Retry | None
    sends: bool
    queue_id: str
    output: Location
    home: Path
    ledger: Ledger
    storage: Storage
    spool: Spool
    stop: Stop
